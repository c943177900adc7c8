# syntax=docker/dockerfile:1
#
#   docker build -t tandem .                              the daemon: nothing in it that trains models
#   docker build -t tandem-training --target training .   the same with PyTorch and what belongs to it
#
# How to run it: docs/install-docker.md and deploy/compose.yaml.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# ---- builder: the program in /opt/tandem, without pip ----------------------------------------------------
FROM ${PYTHON_IMAGE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
# the build backend is pinned like everything else; it stays here
RUN python3 -m venv /build \
    && /build/bin/pip install --constraint constraints.txt hatchling editables
COPY agent ./agent
COPY brokers ./brokers
COPY strategies ./strategies
COPY training ./training
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python3 -m venv --without-pip /opt/tandem \
    && /build/bin/pip --python /opt/tandem/bin/python install --constraint constraints.txt /wheels/*.whl

FROM builder AS training-builder
# an index of CPU wheels saves gigabytes where there is no GPU: --build-arg TORCH_INDEX_URL=...
ARG TORCH_INDEX_URL=
RUN if [ -n "$TORCH_INDEX_URL" ]; then \
        /build/bin/pip --python /opt/tandem/bin/python install --constraint constraints.txt \
            --no-deps --index-url "$TORCH_INDEX_URL" torch; \
    fi \
    && /build/bin/pip --python /opt/tandem/bin/python install --constraint constraints.txt \
        "$(echo /wheels/*.whl)[train]"

# ---- runtime: a user, a state folder, no code yet ---------------------------------------------------------
FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --system --gid 10001 tandem \
    && useradd --system --uid 10001 --gid tandem --home-dir /var/lib/tandem --no-create-home \
        --shell /usr/sbin/nologin tandem \
    && install --directory --owner=tandem --group=tandem --mode=0700 /var/lib/tandem
COPY deploy/container.yaml /etc/tandem/tandem.yaml
ENV PATH=/opt/tandem/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
WORKDIR /var/lib/tandem
VOLUME /var/lib/tandem
USER 10001:10001
# the daemon is process 1: it handles the signal, and waits for the exchange process that it starts
STOPSIGNAL SIGTERM
ENTRYPOINT ["tandem"]

FROM runtime AS training
LABEL org.opencontainers.image.title="tandem-training" \
      org.opencontainers.image.description="Trains policies for the Tandem paper-trading daemon" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=training-builder /opt/tandem /opt/tandem
CMD ["train", "dqn", "--help"]

FROM runtime AS daemon
LABEL org.opencontainers.image.title="tandem" \
      org.opencontainers.image.description="Paper-trading daemon that decides at every bar close" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /opt/tandem /opt/tandem
HEALTHCHECK --interval=30s --timeout=5s --start-period=90s --retries=3 \
    CMD ["tandem", "health", "--url", "http://127.0.0.1:8730"]
CMD ["run", "--config", "/etc/tandem/tandem.yaml"]
