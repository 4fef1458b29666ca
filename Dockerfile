# Three images from one file:
#   docker build --target train    -t clara-train    .   training, evaluation, registry, serving
#   docker build --target beam     -t clara-beam     .   workers of the corpus job (Dataflow, Spark): torch and the model code, no installs at run time
#   docker build --target dataflow -t clara-dataflow .   the same, which a flex template starts too (infra/dataflow/README.md)
# Not built in CI: no container engine there. TORCH_INDEX names PyTorch's index of CPU wheels for machines without a GPU.
ARG BEAM_VERSION=2.77.0
ARG LAUNCHER_VERSION=20230622_RC00

FROM python:3.11-slim AS base
RUN apt-get update && apt-get install --yes --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
ARG TORCH_INDEX=
COPY pyproject.toml README.md LICENSE ./
COPY clara clara
COPY pipelines pipelines
COPY training training
COPY infra infra

FROM base AS train
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} '.[beam,gcp,train,cluster]' && pip check
ENTRYPOINT ["python"]

FROM apache/beam_python3.11_sdk:${BEAM_VERSION} AS sdk

FROM base AS beam
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} '.[beam,gcp]' && pip check
COPY --from=sdk /opt/apache/beam /opt/apache/beam
# Python looks into the working directory first: there must be no sources that hide a wheel which a job has staged.
WORKDIR /
ENTRYPOINT ["/opt/apache/beam/boot"]

FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:${LAUNCHER_VERSION} AS launcher

FROM beam AS dataflow
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY infra/dataflow/template.py /template/launch_build_memory.py
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/launch_build_memory.py
