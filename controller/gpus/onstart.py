"""What a rented machine does at its start, and what it is given.

The model server listens on the machine's loopback address alone: it has no login of its own. In front of it stands a
proxy that takes TLS with the machine's own certificate and calls with the machine's own token. Nothing else of the
platform is on the machine. The proxy lets nobody change which models there are.
"""

import base64

from backplane.domain.gpus import MachineSpec

PROXY_PORT = 11435

ONSTART = r"""#!/bin/sh
set -eu
umask 077
dir=/etc/agent-gpu
mkdir -p "$dir"
printf '%s' "$AGENT_GPU_CERTIFICATE" | base64 -d > "$dir/certificate.pem"
printf '%s' "$AGENT_GPU_KEY" | base64 -d > "$dir/key.pem"
if ! command -v nginx > /dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nginx-light
fi
cat > "$dir/nginx.conf" <<END
worker_processes 1;
pid $dir/nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
  access_log off;
  map_hash_bucket_size 256;
  map \$http_authorization \$is_known { default 0; "Bearer $AGENT_GPU_TOKEN" 1; }
  server {
    listen 11435 ssl;
    ssl_certificate $dir/certificate.pem;
    ssl_certificate_key $dir/key.pem;
    ssl_protocols TLSv1.3;
    client_max_body_size 64m;
    if (\$is_known = 0) { return 401; }
    location ~ ^/api/(pull|push|create|copy|delete|blobs) { return 403; }
    location / {
      proxy_pass http://127.0.0.1:11434;
      proxy_http_version 1.1;
      proxy_set_header Host 127.0.0.1:11434;
      proxy_set_header Authorization "";
      proxy_buffering off;
      proxy_read_timeout 1h;
    }
  }
}
END
export OLLAMA_HOST=127.0.0.1:11434
nohup ollama serve > "$dir/ollama.log" 2>&1 &
for model in $AGENT_GPU_MODELS; do
  until ollama pull "$model"; do sleep 5; done
done > "$dir/pull.log" 2>&1 &
nginx -c "$dir/nginx.conf"
"""


def machine_variables(spec: MachineSpec, token: str, certificate: str, key: str) -> dict[str, str]:
    """The environment that ONSTART reads."""
    return {
        "AGENT_GPU_TOKEN": token,
        "AGENT_GPU_CERTIFICATE": base64.b64encode(certificate.encode()).decode("ascii"),
        "AGENT_GPU_KEY": base64.b64encode(key.encode()).decode("ascii"),
        "AGENT_GPU_MODELS": " ".join(spec.models),
    }
