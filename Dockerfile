# Two images from one file:
#   docker build --target train -t clara-train .       training, evaluation, registry, serving
#   docker build --target beam  -t clara-beam  .       workers of the corpus job (Dataflow, Spark): torch and the model code, no installs at run time
# Not built in CI: no container engine there. TORCH_INDEX names PyTorch's index of CPU wheels for machines without a GPU.
ARG BEAM_VERSION=2.77.0

FROM python:3.11-slim AS base
RUN apt-get update && apt-get install --yes --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
ARG TORCH_INDEX=
COPY pyproject.toml README.md ./
COPY clara clara
COPY pipelines pipelines
COPY training training
COPY infra infra

FROM base AS train
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} '.[beam,train]' && pip check
ENTRYPOINT ["python"]

FROM apache/beam_python3.11_sdk:${BEAM_VERSION} AS sdk

FROM base AS beam
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} '.[beam]' && pip check
COPY --from=sdk /opt/apache/beam /opt/apache/beam
ENTRYPOINT ["/opt/apache/beam/boot"]
