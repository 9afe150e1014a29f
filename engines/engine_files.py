"""What is known of a folder's TensorRT engines, and whether this machine can load them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.device import Gpu
from engines.errors import UserError

ENGINE_FACTS = "engine.json"
CUDA, DRIVER = 13, 580  # the version of CUDA that both runtimes are installed for, the oldest driver it takes


@dataclass(frozen=True)
class Runtime:
    """One of the two TensorRTs: its packages and Python module, the version that onnxruntime's execution
    provider runs plans of, how they begin, and that provider."""

    name: str
    packages: tuple[str, ...]
    module: str
    version: str
    magic: bytes
    provider: str

    def load(self) -> Any:
        """Its Python module; UserError when that or its library is not installed, or is another version."""
        try:
            module = importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            raise self._refused(f"is not installed ({str(error).splitlines()[0]})") from None
        self._check(module.__version__)
        return module

    def check_installed(self) -> None:
        """UserError when a package is not there, or is another version; nothing is loaded."""
        for package in self.packages:
            try:
                self._check(version(package))
            except PackageNotFoundError:
                raise self._refused(f"is not installed (no package {package})") from None

    def _check(self, found: str) -> None:
        if found.split(".")[:2] != self.version.split(".")[:2]:
            raise self._refused(f"is {found} here, onnxruntime runs plans of {self.version}")

    def _refused(self, reason: str) -> UserError:
        packages = " ".join(f"{package}=={self.version}" for package in self.packages)
        return UserError(f"{self.name} {reason}: pip install {packages}")


RTX = Runtime(
    name="TensorRT for RTX",
    packages=("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings"),
    module="tensorrt_rtx_bindings",
    version="1.7.1.116",
    magic=b"vtrt",
    provider="NvTensorRTRTXExecutionProvider",
)
TENSORRT = Runtime(
    name="TensorRT",
    packages=("tensorrt-cu13",),
    module="tensorrt",
    version="10.16.1.11",  # onnxruntime-gpu 1.31 loads libnvinfer.so.10; 10.15 brought the graphs' operators
    magic=b"ftrt",
    provider="TensorrtExecutionProvider",
)


class EngineFacts(BaseModel):
    """For which GPU and by which compiler the engines were built, and the largest sizes they take."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    target: str
    runtime: Literal["TensorRT for RTX", "TensorRT"]
    version: str
    cuda: int
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

    @property
    def by(self) -> Runtime:
        """What built the engines and runs them."""
        return RTX if self.runtime == RTX.name else TENSORRT

    def check_device(self, folder: Path, gpu: Gpu | None) -> None:
        """UserError when the files are no engines, or not for `gpu`, the device of this machine, or its
        driver."""
        for engine in sorted(folder.glob("*.engine")):
            with engine.open("rb") as file:
                if file.read(len(self.by.magic)) != self.by.magic:
                    raise UserError(f"{engine} is no plan of {self.runtime}: build the engines again")
        if gpu is None:
            raise UserError(f"{folder} holds engines for {self.target}: this machine has no NVIDIA GPU")
        if gpu.architecture != self.target:
            raise UserError(
                f"{folder} holds engines for {self.target}, the GPU here is {gpu.name} ({gpu.architecture}): "
                f"build them for it with --target {gpu.architecture}"
            )
        if int(gpu.driver.partition(".")[0]) < DRIVER:
            raise UserError(
                f"{folder} holds engines for CUDA {self.cuda}, the driver here is {gpu.driver}: "
                f"install driver {DRIVER} or newer"
            )

    def check_version(self, folder: Path, version: str) -> None:
        """UserError when the TensorRT that would load the engines, or its CUDA, is not what built them."""
        built = f"{self.runtime} {self.version} for CUDA {self.cuda}"
        if self.version.split(".")[:2] != version.split(".")[:2] or self.cuda != CUDA:
            raise UserError(
                f"{folder} was built by {built}, here is {version} for CUDA {CUDA}: install that version or "
                "build the engines again"
            )
