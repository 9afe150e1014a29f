# syntax=docker/dockerfile:1
# Two images of this checkout. Both run as user 10001, without capabilities, on a read-only root file system;
# what they write is below /artifacts, /state and /tmp.
#   docker build --target pipeline -t variants-pipeline .
#   docker build --target serve --build-arg DEVICE=cpu|cuda|tensorrt -t variants-serve .
# A GPU's libraries are in the packages; its driver comes from NVIDIA's container runtime.
ARG DEVICE=cpu

FROM python:3.11-slim-bookworm AS base
ENV PATH=/opt/venv/bin:$PATH

# ONNX artifacts on the CPU, and the router.
FROM base AS packages-cpu
RUN --mount=type=bind,source=requirements,target=/requirements --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv && pip install --no-deps -r /requirements/serve.txt

# Checkpoints, by transformers; torch from PyPI brings CUDA.
FROM base AS packages-cuda
RUN --mount=type=bind,source=requirements,target=/requirements --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv && pip install -c /requirements/dev.txt -r /requirements/serve.txt \
        torch transformers compressed-tensors nvidia-ml-py

# Engines of TensorRT for RTX: sm75, sm86, sm89 and sm120.
FROM base AS packages-tensorrt
RUN --mount=type=bind,source=requirements,target=/requirements --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv && pip install -c /requirements/dev.txt -r /requirements/serve.txt \
        nvidia-ml-py onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0

# With PIP_EXTRA_INDEX_URL of torch for the CPU it is gigabytes smaller.
FROM base AS packages-pipeline
ARG PIP_EXTRA_INDEX_URL=
RUN --mount=type=bind,source=requirements,target=/requirements --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv && pip install -r /requirements/build.txt

# hadolint ignore=DL3006
FROM packages-${DEVICE} AS packages-serve

FROM base AS project
# PYTHONPATH: `python -m build` is ours, in whatever folder.
ENV PYTHONPATH=/project PYTHONUNBUFFERED=1 HOME=/tmp HF_HOME=/artifacts/.hub \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Some of torch asks for the user's name.
RUN useradd --uid 10001 --home-dir /tmp variants && install -d -o 10001 -g 10001 /artifacts /state
COPY . /project
WORKDIR /

FROM project AS pipeline
# Joins Arabic letters in the evaluation pages.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends libfribidi0 && rm -rf /var/lib/apt/lists/*
COPY --from=packages-pipeline /opt/venv /opt/venv
USER 10001:10001
CMD ["python", "-m", "build", "all", "--out", "/artifacts"]

FROM project AS serve
COPY --from=packages-serve /opt/venv /opt/venv
USER 10001:10001
CMD ["python", "-m", "serve", "--help"]
