"""Answers a chat request: runs its sequences, and puts their tokens together whole or chunk by chunk."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from engines.errors import UserError
from engines.thoughts import thinking
from serve.arm.answers import (
    AnswerMessage,
    Call,
    CalledFunction,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    FinishReason,
    IndexedCall,
    LikelyToken,
    Logprobs,
    PromptDetails,
    TokenLogprob,
    Usage,
)
from serve.arm.arm import Arm
from serve.arm.errors import ApiError
from serve.arm.model import Model
from serve.arm.output import Output, Piece
from serve.arm.prompt import prepare
from serve.arm.rules import constraint, rules
from serve.arm.schema import ChatRequest
from serve.arm.sequence import Answer, Token
from serve.arm.turns import Client


@dataclass(eq=False)
class Part:
    """One of a request's n answers, and what has become of its tokens so far."""

    answer: Answer
    output: Output
    pieces: list[Piece] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: int = 0
    finish_reason: FinishReason | None = None


@dataclass(eq=False)
class Chat:
    """A request whose prompt is ready to run. `place`: of its pictures, left when they are computed."""

    model: Model
    name: str
    digest: str | None
    parts: list[Part]
    place: ExitStack
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def run(self) -> AsyncIterator[tuple[int, list[Piece]]]:
        """Token by token: whose it is, and what it made certain. Ends when all parts have."""
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[tuple[int, Token | Exception]] = asyncio.Queue()
        for number, part in enumerate(self.parts):

            def emit(token: Token | Exception, number: int = number) -> None:
                loop.call_soon_threadsafe(found.put_nowait, (number, token))

            part.answer.emit = emit
            self.model.scheduler.submit(part.answer)
        running, begun = len(self.parts), set[int]()
        while running:
            number, token = await found.get()
            if isinstance(token, UserError):
                raise ApiError(400, str(token))
            if isinstance(token, Exception):
                raise ApiError(500, "the model failed: the arm has to be started again")
            begun.add(number)
            if len(begun) == len(self.parts):
                self.place.close()
            running -= token.finish_reason is not None
            yield number, self._take(self.parts[number], token)

    def cancel(self) -> None:
        """Give up what still runs; its slots are free within a step."""
        for part in self.parts:
            part.answer.cancelled = True
        self.place.close()

    def usage(self) -> Usage:
        prompt = len(self.parts[0].answer.inputs.input_ids)
        said = sum(len(part.answer.said) for part in self.parts)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=said,
            total_tokens=prompt + said,
            prompt_tokens_details=PromptDetails(cached_tokens=self.parts[0].answer.reused),
        )

    def facts(self) -> dict[str, Any]:
        """For the log."""
        usage, answer = self.usage(), self.parts[0].answer
        return {
            "gen_ai.response.id": self.id,
            "gen_ai.response.finish_reasons": [part.finish_reason for part in self.parts],
            "gen_ai.response.time_to_first_chunk": round(answer.ttft, 4),
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.prompt_tokens_details.cached_tokens,
        }

    def _take(self, part: Part, token: Token) -> list[Piece]:
        pieces = part.output.feed(token.text)
        if token.finish_reason:
            pieces += part.output.close()
        part.pieces += pieces
        part.calls += sum(piece.kind == "call" for piece in pieces)
        if part.answer.rules.logprobs is not None:
            part.logprobs.append(self._logprob(token))
        if token.finish_reason:
            part.finish_reason = "tool_calls" if part.calls else token.finish_reason
        return pieces

    def _logprob(self, token: Token) -> TokenLogprob:
        def likely(token_id: int, logprob: float) -> LikelyToken:
            data = self.model.grammar.token_bytes(token_id)
            text = data.decode(errors="replace")
            return LikelyToken(token=text, logprob=max(logprob, -9999.0), bytes=list(data))

        chosen = likely(token.token_id, token.logprob)
        others = [likely(*pair) for pair in token.likeliest]
        return TokenLogprob(**chosen.model_dump(), top_logprobs=others)


async def begin(arm: Arm, model: Model, request: ChatRequest, client: Client) -> Chat:
    """Prepare a request's prompt and sequences; ApiError for all that can be known to be wrong by then."""
    arm.check_name(request.model)
    arrived, loop = time.perf_counter(), asyncio.get_running_loop()
    with ExitStack() as place:
        inputs, vision = await prepare(arm, model, request, client, place)
        base, processor = rules(model, request, inputs), model.processor
        opened, forced = thinking(processor, inputs), bool(request.forced_tools)
        eos = () if request.ignore_eos else processor.config.eos_token_ids
        parts = []
        for number in range(request.n):
            own = replace(base, sampling=replace(base.sampling, seed=base.sampling.seed + number * 2**64))
            held = await loop.run_in_executor(arm.readers, constraint, model, request)
            answer = Answer(
                inputs, vision, own, processor.tokenizer, eos, lambda _: None, held, client, arrived=arrived
            )
            output = Output(thinking=opened and not forced, tools=bool(request.offered_tools), forced=forced)
            parts.append(Part(answer, output))
        return Chat(model, arm.settings.name, arm.settings.digest, parts, place.pop_all())


async def whole(chat: Chat) -> ChatCompletion:
    """The completion, when all of it is there."""
    async for _ in chat.run():
        pass
    choices = [_choice(index, part) for index, part in enumerate(chat.parts)]
    return ChatCompletion(
        id=chat.id,
        created=chat.created,
        model=chat.name,
        choices=choices,
        usage=chat.usage(),
        system_fingerprint=chat.digest,
    )


async def chunks(chat: Chat, *, include_usage: bool) -> AsyncIterator[ChatCompletionChunk]:
    """The completion in chunks; each choice has a first one that names its role, a last one that tells why it
    ended. Clients take a call for finished when the last one comes."""

    def chunk(choices: list[ChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=chat.id,
            created=chat.created,
            model=chat.name,
            choices=choices,
            usage=usage,
            system_fingerprint=chat.digest,
        )

    for index in range(len(chat.parts)):
        yield chunk([ChunkChoice(index=index, delta=Delta(role="assistant", content=""))])
    async for index, pieces in chat.run():
        part = chat.parts[index]
        first_call = part.calls - sum(piece.kind == "call" for piece in pieces)
        logprobs = Logprobs(content=part.logprobs[-1:]) if part.logprobs else None
        if pieces or logprobs:
            yield chunk([ChunkChoice(index=index, delta=_delta(pieces, first_call), logprobs=logprobs)])
        if part.finish_reason:
            yield chunk([ChunkChoice(index=index, delta=Delta(), finish_reason=part.finish_reason)])
    if include_usage:
        yield chunk([], chat.usage())


def _text(pieces: list[Piece], kind: str) -> str | None:
    return "".join(piece.text for piece in pieces if piece.kind == kind) or None


def _calls(pieces: list[Piece]) -> list[Call]:
    return [
        Call(
            id=f"call_{secrets.token_hex(12)}",
            function=CalledFunction(name=piece.name, arguments=piece.text),
        )
        for piece in pieces
        if piece.kind == "call"
    ]


def _choice(index: int, part: Part) -> Choice:
    calls, content = _calls(part.pieces), _text(part.pieces, "content")
    thoughts = _text(part.pieces, "reasoning")
    return Choice(
        index=index,
        message=AnswerMessage(
            content=content if calls else content or "",
            reasoning=thoughts,
            reasoning_content=thoughts,
            tool_calls=calls or None,
        ),
        logprobs=Logprobs(content=part.logprobs) if part.logprobs else None,
        finish_reason=part.finish_reason or "stop",
    )


def _delta(pieces: list[Piece], first_call: int) -> Delta:
    calls = [
        IndexedCall(index=index, **call.model_dump())
        for index, call in enumerate(_calls(pieces), start=first_call)
    ]
    thoughts = _text(pieces, "reasoning")
    return Delta(
        content=_text(pieces, "content"),
        reasoning=thoughts,
        reasoning_content=thoughts,
        tool_calls=calls or None,
    )
