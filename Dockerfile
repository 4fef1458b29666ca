# Three images from one file:
#   docker build --target train    -t clara-train    .   training, evaluation, registry, serving, on one machine or under Ray
#   docker build --target beam     -t clara-beam     .   workers of the corpus job (Dataflow, Spark): torch and the model code, no installs at run time
#   docker build --target dataflow -t clara-dataflow .   the same, which a flex template starts too (infra/dataflow/README.md)
# Not built in CI: no container engine there. Requirements are locked with hashes (`make lock`). `python -m infra.images.pin` fills the digests of the
# base images, which are empty until it has asked their registries. TORCH_INDEX names PyTorch's index of CPU wheels for machines without a GPU: torch is
# then installed from there, by version and not by hash.
ARG PYTHON_DIGEST=
ARG SDK_DIGEST=
ARG LAUNCHER_DIGEST=

FROM python:3.11-slim${PYTHON_DIGEST} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update && apt-get install --yes --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home clara
WORKDIR /app
ARG TORCH_INDEX=
ARG TORCH_VERSION=2.13.0
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements requirements
COPY pyproject.toml README.md LICENSE ./
COPY clara clara
COPY pipelines pipelines
COPY training training
COPY infra infra
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-deps --index-url "$TORCH_INDEX" "torch==$TORCH_VERSION"; fi

FROM base AS train
RUN pip install --no-deps --require-hashes --requirement "requirements/train${TORCH_INDEX:+-cpu}.txt" \
 && pip install --no-deps --no-index --no-build-isolation . && pip check
USER 10001
ENTRYPOINT ["python"]

FROM apache/beam_python3.11_sdk:2.77.0${SDK_DIGEST} AS sdk

FROM base AS beam
RUN pip install --no-deps --require-hashes --requirement "requirements/beam${TORCH_INDEX:+-cpu}.txt" \
 && pip install --no-deps --no-index --no-build-isolation . && pip check \
 && mkdir --parents /opt/apache/beam-venv && chown clara /opt/apache/beam-venv
COPY --from=sdk /opt/apache/beam /opt/apache/beam
# Python looks into the working directory first: there must be no sources that hide a wheel which a job has staged.
WORKDIR /
USER 10001
ENTRYPOINT ["/opt/apache/beam/boot"]

FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:20230622_RC00${LAUNCHER_DIGEST} AS launcher

FROM beam AS dataflow
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY infra/dataflow/template.py /template/launch_build_memory.py
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/launch_build_memory.py
USER 10001
