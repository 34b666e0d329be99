"""Checks a manifest against the schemas that Kubernetes publishes for its versions (as packaged in kubernetes-validate), by
the rules that it says only in words, and prints it as JSON."""

import json
import sys

import kubernetes_validate
import yaml

manifest = yaml.safe_load(sys.stdin)
# podFailurePolicy is there without a gate since 1.26, but until 1.28 the schemas demand onPodConditions in every rule, which
# the servers do not.
newest = int(kubernetes_validate.latest_version().split(".")[1])
versions = [f"1.{minor}" for minor in range(29, newest + 1)]
for version in versions:
    kubernetes_validate.validate(manifest, version, strict=True)
print(json.dumps({"versions": versions, "manifest": manifest}))
