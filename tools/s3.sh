#!/usr/bin/env bash
# Tests the object store against a real S3 server, SeaweedFS, on loopback, and stops the server again.
# Needs python3 (3.11 or newer) with pip; makes its own virtual environment in target/. Arguments go to the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/s3-venv
if ! cmp -s tools/s3-requirements.txt "$venv/requirements.txt"; then
    echo "making $venv"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tools/s3-requirements.txt
    cp tools/s3-requirements.txt "$venv/requirements.txt"
fi
# Built before the server starts, so that it runs no longer than the tests.
cargo test --quiet -p deltaloom-object-store --test s3 --no-run

data="$(mktemp -d)"
server=
stop() {
    if [ -n "$server" ]; then
        # At once: its data goes too, and an orderly end takes 16 s.
        kill -KILL "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$data"
}
trap stop EXIT
trap 'exit 130' INT TERM

# Three keys: of the owner, of somebody who may only read, and one that the server does not know.
cat >"$data/s3.json" <<'IDENTITIES'
{"identities": [
  {"name": "owner", "credentials": [{"accessKey": "owner", "secretKey": "owner-secret"}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
  {"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "reader-secret"}], "actions": ["Read", "List"]}
]}
IDENTITIES
# Asked for all at once, so that they differ.
read -r -a ports < <(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(8)]
print(*(s.getsockname()[1] for s in sockets))')
# Nothing but loopback: no telemetry, and every part is bound to 127.0.0.1.
"$venv/bin/weed" -logtostderr server -dir="$data" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
    -master.telemetry=false -master.port="${ports[0]}" -master.port.grpc="${ports[1]}" -master.volumeSizeLimitMB=1024 \
    -volume.port="${ports[2]}" -volume.port.grpc="${ports[3]}" -volume.max=64 -volume.preStopSeconds=0 \
    -filer -filer.port="${ports[4]}" -filer.port.grpc="${ports[5]}" -filer.localSocket="$data/filer.sock" \
    -s3 -s3.port="${ports[6]}" -s3.port.grpc="${ports[7]}" -s3.localSocket="$data/s3.sock" -s3.port.iceberg=0 -s3.port.lance=0 \
    -s3.config="$data/s3.json" -s3.iam=false -s3.autoCreateBucket=false >"$data/log" 2>&1 &
server=$!

# Ready when the bucket can be made, which needs every part of the server.
make_bucket() {
    echo "s3.bucket.create -name series" | timeout 20 "$venv/bin/weed" shell -master="127.0.0.1:${ports[0]}.${ports[1]}" \
        -filer="127.0.0.1:${ports[4]}.${ports[5]}" 2>&1 || true
}
deadline=$((SECONDS + 60))
until [[ "$(make_bucket)" == *"created bucket"* ]]; do
    if [ "$SECONDS" -ge "$deadline" ] || ! kill -0 "$server" 2>/dev/null; then
        echo "error: the server did not start; its last lines:" >&2
        tail -n 20 "$data/log" >&2
        exit 1
    fi
done

env AWS_ENDPOINT="http://127.0.0.1:${ports[6]}" AWS_ALLOW_HTTP=true AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=owner \
    AWS_SECRET_ACCESS_KEY=owner-secret DELTALOOM_TEST_BUCKET=s3://series \
    timeout 300 cargo test -p deltaloom-object-store --test s3 -- --ignored "$@"
