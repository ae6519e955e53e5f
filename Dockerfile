# Two stages: the first compiles and installs, the second serves as an unprivileged user.
#
#   docker build --tag tokenstream .
#   docker run --rm -p 3030:3030 tokenstream
#
# Mount /srv/tokenstream/config for other contexts and /srv/tokenstream/models to keep downloaded models. An image
# built with --build-arg KNOWLEDGE=on answers from documents mounted on /srv/tokenstream/data. See docs/docker.md.
#
# The image has builds of llama.cpp for CPUs of several generations; the server chooses one at start. With
# --build-arg BUILDS=this it has one build, for the CPU that builds the image: a quarter of the time. With
# --build-arg WHEELS=URL it has the builds of an archive of `make wheels`, and nothing is compiled.

ARG BASE=debian:trixie-slim

FROM ${BASE} AS builder

RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

WORKDIR /srv/tokenstream

# Only the inputs of `make install`: a change in app/ does not compile llama.cpp again. The cache mount stores
# downloads and the compiled library for the next build, outside the layers.
COPY Makefile ./
COPY requirements/ requirements/
COPY native/ native/
ARG LLAMA_BUILD_FLAGS=""
ARG KNOWLEDGE=""
ARG OTLP_ENDPOINT=""
ARG BUILDS=all
ARG WHEELS=""
RUN --mount=type=cache,target=/root/.cache \
    case "$WHEELS$BUILDS-$(uname -m)" in \
    all-x86_64 | all-aarch64) make wheels && make install WHEELS=native-builds.zip && rm native-builds.zip ;; \
    *) make install ;; \
    esac

# Not needed at run time: pip, other copies of the native library, tests, source maps, debug symbols.
RUN .venv/bin/python -m pip uninstall --quiet --yes pip \
    && cd .venv/lib/python3*/site-packages \
    && rm -rf lib include bin \
    && if [ -d ../../../native-builds ]; then rm -rf llama_cpp/lib; fi \
    && find . -type d -name tests -prune -exec rm -rf {} + \
    && find . -name '*.map' -delete \
    && strip --strip-debug uvloop/*.so hf_xet/*.so

# Readable for the server's user, independent of the umask of the checkout. Compiled here, because this user
# cannot write .pyc files.
COPY app/ app/
COPY config/ config/
COPY data/ data/
RUN chmod -R a+rX app config data && .venv/bin/python -m compileall -q app


FROM ${BASE}

ARG BASE

LABEL org.opencontainers.image.title="Tokenstream" \
    org.opencontainers.image.description="Serves a quantized GGUF model on plain CPUs" \
    org.opencontainers.image.version="0.2.0" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.base.name="${BASE}"

RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libstdc++6 python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin tokenstream \
    && install --directory --owner=10001 --group=10001 /srv/tokenstream/models

WORKDIR /srv/tokenstream

# Same path and same Python as in the first stage: a virtual environment contains both as absolute paths.
COPY --from=builder /srv/tokenstream/.venv .venv
COPY --from=builder /srv/tokenstream/config config
COPY --from=builder /srv/tokenstream/data data
COPY --from=builder /srv/tokenstream/app app
COPY LICENSE LICENSE

# Numeric, so that Kubernetes (runAsNonRoot) can verify that it is not root.
USER 10001:10001

# Knowledge base on documents in /srv/tokenstream/data.
ARG KNOWLEDGE=""
ENV KNOWLEDGE=$KNOWLEDGE

ENV PATH=/srv/tokenstream/.venv/bin:$PATH \
    HTTP_ADDRESS=0.0.0.0:3030
EXPOSE 3030

# The start period allows for the download of a model. http.client, because urllib would use HTTP_PROXY. A certificate
# has no name of this address.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "import http.client, os, ssl; at = os.environ['HTTP_ADDRESS']; tls = os.environ.get('SSL_CERTFILE'); server = http.client.HTTPSConnection(at, timeout=4, context=ssl._create_unverified_context()) if tls else http.client.HTTPConnection(at, timeout=4); server.request('GET', '/ready'); raise SystemExit(server.getresponse().status != 200)"]

STOPSIGNAL SIGTERM
CMD ["python", "-m", "app", "serve"]
