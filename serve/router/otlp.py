"""Log lines to a collector, by OpenTelemetry's own SDK."""

from __future__ import annotations

from collections.abc import Callable

from engines.errors import UserError
from serve.router.log import clock_offset, line
from serve.router.record import Record


class Exporter:
    """Sends what it is told in batches, on a thread of the SDK's; what a collector does not take is lost."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is a collector's OTLP over HTTP, http://HOST:4318. Raises UserError without the SDK."""
        try:
            from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
            from opentelemetry.sdk._logs import LoggerProvider
            from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
            from opentelemetry.sdk.resources import Resource
        except ImportError:
            raise UserError(
                "--otlp needs OpenTelemetry's SDK: "
                "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
            ) from None
        self._provider = LoggerProvider(Resource.create({"service.name": "router"}))
        exporter = OTLPLogExporter(endpoint=endpoint.rstrip("/") + "/v1/logs")
        self._provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
        self._emit: Callable[..., None] = self._provider.get_logger("router").emit

    def write(self, record: Record) -> None:
        """One request."""
        offset = clock_offset()
        fields = line(record, offset)
        del fields["timestamp"]
        self._emit(timestamp=int((record.started + offset) * 1e9), event_name="request", attributes=fields)

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()
