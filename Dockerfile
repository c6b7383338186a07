# The runtime: this package, ONNX Runtime and the server, without PyTorch.  l2c_export/distribution/README.md says how it is run.
ARG PYTHON=3.12-slim

FROM python:${PYTHON} AS build
ARG EXTRAS=onnxruntime,images,text,serve,registry
COPY pyproject.toml README.md LICENSE /source/
COPY l2c_export /source/l2c_export
RUN python -m venv /opt/l2c \
    && /opt/l2c/bin/pip install --no-cache-dir --disable-pip-version-check "/source[${EXTRAS}]" \
    && ! /opt/l2c/bin/python -c "import torch" 2>/dev/null

FROM python:${PYTHON}
COPY --from=build /opt/l2c /opt/l2c
ENV PATH=/opt/l2c/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 L2C_CACHE=/tmp/l2c-cache HF_HOME=/tmp/hf
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["l2c"]
CMD ["--help"]
