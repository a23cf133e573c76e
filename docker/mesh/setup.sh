#!/bin/sh
# Prepares the mesh of compose.yaml: says who the shop is and who may call it, and lets each sidecar join once.
set -eu
umask 077

tries=0
until answer=$(/postern status --data /data 2>&1); do
    tries=$((tries + 1))
    [ "$tries" -lt 30 ] || { echo "the control plane does not answer: $answer" >&2; exit 1; }
    sleep 1
done
/postern service apply --data /data -f /setup/services.yaml
/postern policy apply --data /data -f /setup/policy.yaml
for name in web shop; do
    /postern token create --data /data --id "spiffe://compose.example/ns/demo/sa/$name" --ttl 10m >"/join/$name/join"
done
