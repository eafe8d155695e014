# sdtune as a container: `docker build -t sdtune .`, then compose.yaml, or docs/deploying.md, "In a container".
#
# torch comes from pip's usual index. For other wheels (CPU alone, which makes the image some GB smaller; another CUDA), name the index that
# PyTorch's page "Get started" gives: docker build --build-arg TORCH_INDEX=URL .
# No secret goes into a layer: the token is read when the container starts.

ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=
ARG EXTRAS=serve,parquet
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /sdtune
WORKDIR /src
COPY constraints.txt ./
RUN /sdtune/bin/pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY licenses licenses
COPY recipes recipes
COPY src src
RUN /sdtune/bin/pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}
ARG UID=1000
RUN useradd --uid ${UID} --create-home --shell /usr/sbin/nologin sdtune \
    && mkdir -p /srv/sdtune/runs /srv/sdtune/data /srv/sdtune/served /srv/sdtune/cache \
    && chown -R sdtune:sdtune /srv/sdtune
COPY --from=build /sdtune /sdtune
ENV PATH=/sdtune/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/srv/sdtune/cache/huggingface SDTUNE_CACHE=/srv/sdtune/cache/sdtune XDG_CACHE_HOME=/srv/sdtune/cache
USER sdtune
WORKDIR /srv/sdtune
VOLUME ["/srv/sdtune/runs", "/srv/sdtune/data", "/srv/sdtune/served", "/srv/sdtune/cache"]
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/livez', timeout=4)"]
ENTRYPOINT ["sdtune"]
# Others reach it, so it does not start without a token: SDTUNE_TOKEN, or --token-file as in compose.yaml.
CMD ["serve", "--host", "0.0.0.0", "--port", "7860", "--folder", "served"]
