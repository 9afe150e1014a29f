"""What is known of a folder's TensorRT engines, and whether this machine can load them."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.device import Gpu
from engines.errors import UserError

ENGINE_FACTS = "engine.json"
PLAN_MAGIC = b"vtrt"  # how a plan of TensorRT for RTX begins


class EngineFacts(BaseModel):
    """For which GPU and by which compiler the engines were built, and the largest sizes they take."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    target: str
    runtime: str
    version: str
    context: int
    batch: int
    chunk: int
    patches: int

    @classmethod
    def read(cls, folder: Path) -> EngineFacts:
        """The facts of the engines in `folder`; UserError when they are missing or broken."""
        path = folder / ENGINE_FACTS
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path} is missing: build the engines again") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise UserError(f"{path}: {where}: {first['msg']}; build the engines again") from None

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=2) + "\n")

    def check_device(self, folder: Path, gpu: Gpu | None) -> None:
        """UserError when the files are no engines, or not for `gpu`, the device of this machine."""
        for engine in sorted(folder.glob("*.engine")):
            with engine.open("rb") as file:
                if file.read(len(PLAN_MAGIC)) != PLAN_MAGIC:
                    raise UserError(f"{engine} is no plan of {self.runtime}: build the engines again")
        if gpu is None:
            raise UserError(f"{folder} holds engines for {self.target}: this machine has no NVIDIA GPU")
        if gpu.architecture != self.target:
            raise UserError(
                f"{folder} holds engines for {self.target}, the GPU here is {gpu.name} ({gpu.architecture}): "
                f"build them for it with --target {gpu.architecture}"
            )

    def check_version(self, folder: Path, version: str) -> None:
        """UserError when the TensorRT that would load the engines is not the one that built them."""
        if self.version.split(".")[:2] != version.split(".")[:2]:
            raise UserError(
                f"{folder} was built by {self.runtime} {self.version}, here is {version}: install that "
                "version or build the engines again"
            )
