"""Every name of TensorRT that the compiler uses is in both of its Python modules, whose library only one has.

Of plain TensorRT only the module is installed: its library is gigabytes and does nothing without a GPU. Empty
functions stand for what it would import from there, which is enough to ask its classes for their attributes.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorrt_rtx_bindings

from engines.tensorrt import compiler

LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
IMPORTED = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
CLASSES = {  # of the compiler's variables
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
}
RTX_ALONE = {  # behind a condition: it compiles for GPUs that it does not see
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}


def names_used() -> set[str]:
    """As a path from the module: ILogger.Severity.ERROR, Builder.create_network."""
    found = set()
    for node in ast.walk(ast.parse(Path(compiler.__file__).read_text())):
        parts: list[str] = []
        value: ast.AST = node
        while isinstance(value, ast.Attribute):
            parts.insert(0, value.attr)
            value = value.value
        if parts and isinstance(value, ast.Name) and value.id in {"trt", *CLASSES}:
            found.add(".".join([*filter(None, [CLASSES.get(value.id)]), *parts]))
    return found


def has(module: object, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (cc := shutil.which("cc")):
        pytest.skip("no C compiler to stand in for TensorRT's library")
    folder = tmp_path_factory.mktemp("library")
    (folder / "empty.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in IMPORTED))
    subprocess.run([cc, "-shared", "-fPIC", "empty.c", "-o", LIBRARIES[0]], cwd=folder, check=True)
    for name in LIBRARIES[1:]:
        (folder / name).symlink_to(LIBRARIES[0])
    return folder


def test_the_compiler_is_read_as_meant() -> None:
    used = names_used()
    assert {"Builder.create_network", "IStreamWriter", "ILogger.Severity.ERROR"} | RTX_ALONE <= used
    assert len(used) > 15


def test_tensorrt_for_rtx_has_every_name() -> None:
    assert {name for name in names_used() if not has(tensorrt_rtx_bindings, name)} == set()


def test_plain_tensorrt_lacks_only_the_choice_of_a_gpu(library: Path) -> None:
    code = (
        "import json, sys, tensorrt_bindings; from tests.test_tensorrt_calls import has;"
        "print(json.dumps([name for name in sys.argv[1:] if not has(tensorrt_bindings, name)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names_used()],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(library), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == RTX_ALONE
