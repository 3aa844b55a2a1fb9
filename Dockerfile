# agent-api: one image for API, worker and controller; they are three commands of it.
#
# What is installed is pinned by hash (requirements.txt). The base is pinned by its version here; for a build that can be
# repeated, give its digest too: --build-arg PYTHON_IMAGE=docker.io/library/python:3.12-slim@sha256:…
ARG PYTHON_IMAGE=docker.io/library/python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
RUN python3 -m venv --without-pip /opt/venv
COPY requirements.txt /tmp/
RUN python3 -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --disable-pip-version-check \
        --require-hashes -r /tmp/requirements.txt
# botocore describes four hundred services; the workspaces need S3 and what signs a role's requests. Nobody here compiles.
RUN set -eu; cd /opt/venv/lib/python3*/site-packages; \
    find botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name sso ! -name sso-oidc -exec rm -rf {} +; \
    find . -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +; \
    find . -type f \( -name '*.c' -o -name '*.h' -o -name '*.pxd' -o -name '*.pyx' -o -name '*.pyi' \) -delete
COPY agentctl /srv/agent/agentctl
COPY app /srv/agent/app
COPY backplane /srv/agent/backplane
COPY controller /srv/agent/controller
COPY worker /srv/agent/worker
# The root is read-only when it runs, so bytecode is written now, and never checked against its source.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib /srv/agent

FROM ${PYTHON_IMAGE} AS platform
RUN groupadd --gid 10001 agent && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin agent
COPY --from=build /opt/venv /opt/venv
COPY --from=build /srv/agent /srv/agent
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LOG_FORMAT=json
WORKDIR /srv/agent
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Python is process 1 and handles SIGTERM itself; nothing here leaves orphans. The API is the command that is meant when
# none is named; the others: python -m worker, python -m controller, python -m agentctl migrate.
CMD ["python", "-m", "uvicorn", "app.main:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "5"]
# Of the API; whoever runs another command says how that one is checked.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-S", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]

# For docker-compose.yml only: with bubblewrap, which runs what runs execute where there is no Kubernetes.
FROM platform AS worker-with-bubblewrap
USER root
# A volume that is mounted at /scratch takes this folder's owner.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=agent --group=agent /scratch
USER 10001:10001
CMD ["python", "-m", "worker"]

# What is built when no target is named.
FROM platform
