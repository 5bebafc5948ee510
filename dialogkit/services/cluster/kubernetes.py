"""A training as a job of Kubernetes: a Job on one machine, Kubeflow's PyTorchJob on several."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from dialogkit.errors import ConfigError
from dialogkit.redaction import without_secrets
from dialogkit.services.cluster.job import Job, heading, require_no_secrets, shell_words

RETRIES = 6
GRACE_S = 300
"""Seconds that a pod has to save when it must go."""
FOLDER = "/workspace"
"""Where the claim is mounted, and the training runs."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")
_LONGEST_NAME = 50
"""Characters of a job's name: pods have it with `-worker-0` and the like behind it, and at most 63."""


def kubernetes_manifest(
    job: Job,
    command: Sequence[str],
    *,
    image: str,
    claim: str,
    namespace: str | None = None,
    secret: str | None = None,
) -> str:
    """Return a manifest for `kubectl apply`: a Job, or a PyTorchJob where there are several nodes.

    Args:
        job: the training.
        command: the words that were typed; kept as a comment.
        image: container image in which `dialogkit` is installed.
        claim: PersistentVolumeClaim on which models, runs and caches lie, so that they outlive a pod.
        namespace: namespace. None: kubectl's.
        secret: Secret whose entries, such as WANDB_API_KEY, the training gets as environment.

    Raises: ConfigError for a name that is none, or a secret among what would be written.
    """
    import yaml

    if secret is not None and without_secrets([f"x={secret}"]) != [f"x={secret}"]:
        raise ConfigError("--secret is the name of a Secret, and holds a secret itself", hint="--secret wandb")
    _require_on_claim(job)
    for option, value in (("--claim", claim), ("--namespace", namespace), ("--secret", secret)):
        if value is not None and not _LABEL.fullmatch(value):
            raise ConfigError(
                f"{option} {value!r} is no name that Kubernetes knows: lower-case letters, digits and dashes",
                hint=f"{option} dialogkit",
            )
    if "@" in image.rpartition("/")[0]:
        raise ConfigError(
            "--image holds a user or a password, and a job file is read by many",
            hint="--image registry.example/dialogkit:1",
        )
    if not _IMAGE.fullmatch(image):
        raise ConfigError(f"--image {image!r} is no name of an image", hint="--image registry.example/dialogkit:1")
    metadata = {
        "name": kubernetes_name(job.run),
        **({"namespace": namespace} if namespace else {}),
        "labels": {"app.kubernetes.io/name": "dialogkit"},
        "annotations": {"dialogkit/run": job.run},
    }
    if job.nodes > 1:
        manifest = _pytorch_job(job, metadata, image=image, claim=claim, secret=secret)
    else:
        manifest = _job(job, metadata, image=image, claim=claim, secret=secret)

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]  # of a library without types
        """Writes texts of several lines as blocks, and nothing as a reference, so that people can read it."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    drawn = yaml.dump(manifest, Dumper=Dumper, sort_keys=False, width=10_000)
    return require_no_secrets("\n".join([*heading(job, command, goes_on=False), drawn]))


def _require_on_claim(job: Job) -> None:
    """Raise ConfigError for a place that no pod sees: only what is on the claim outlives it."""
    places = {
        "--output-dir": job.output,
        "--dataset": job.config.data.dataset,
        "MODEL": job.config.model.source or "",
    }
    for what, place in places.items():
        path = PurePosixPath(place)
        if path.is_absolute() and not path.is_relative_to(FOLDER):
            raise ConfigError(
                f"{what} {place!r} is not on the claim, which a pod sees as {FOLDER}",
                hint=f"{what} {path.name}" if what.startswith("--") else f"{path.name} in its place",
            )


def kubernetes_name(run: str) -> str:
    """Return the name of a run as Kubernetes allows it: lower case, letters, digits and dashes, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    name = name if name[:1].isalpha() else f"run-{name}"
    return name[:_LONGEST_NAME].rstrip("-")


def _job(job: Job, metadata: dict[str, Any], **parts: Any) -> dict[str, Any]:
    pod = {"restartPolicy": "Never", **_pod(job, "train", **parts)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": RETRIES,
            # A pod that must go is no failure; wrong input (2) and a diverged training (3) would fail again.
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "train", "operator": "In", "values": [2, 3]},
                    },
                ]
            },
            **({"activeDeadlineSeconds": job.time_s} if job.time_s else {}),
            "template": {"metadata": {"labels": metadata["labels"]}, "spec": pod},
        },
    }


def _pytorch_job(job: Job, metadata: dict[str, Any], **parts: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": metadata["labels"]}, "spec": _pod(job, "pytorch", **parts)}
    replicas = {"Master": 1, "Worker": job.nodes - 1}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": metadata,
        "spec": {
            "nprocPerNode": str(job.devices),
            "runPolicy": {
                "backoffLimit": RETRIES,
                "cleanPodPolicy": "Running",
                **({"activeDeadlineSeconds": job.time_s} if job.time_s else {}),
            },
            "pytorchReplicaSpecs": {
                # The rest of a group ends with any code when one of it is gone, so any is tried again.
                name: {"replicas": count, "restartPolicy": "OnFailure", "template": template}
                for name, count in replicas.items()
            },
        },
    }


def _pod(job: Job, container: str, *, image: str, claim: str, secret: str | None) -> dict[str, Any]:
    resources: dict[str, Any] = {"cpu": str(job.cpus)}
    if job.memory:
        resources["memory"] = f"{job.memory}i"
    if job.gpus:
        resources["nvidia.com/gpu"] = str(job.gpus)
    environment = {
        "HF_HOME": f"{FOLDER}/.cache/huggingface",
        "DIALOGKIT_CACHE": f"{FOLDER}/.cache/dialogkit",
        "OMP_NUM_THREADS": str(max(1, job.cpus // job.devices)),
    }
    return {
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [
            {
                "name": container,
                "image": image,
                "command": ["/bin/sh", "-c", _for_kubernetes(_script(job))],
                "workingDir": FOLDER,
                "env": [{"name": name, "value": value} for name, value in environment.items()],
                **({"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}),
                "resources": {"limits": resources, "requests": dict(resources)},
                "volumeMounts": [
                    {"name": "workspace", "mountPath": FOLDER},
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _script(job: Job) -> str:
    """Return what a pod runs: the training or, where the run is there already, the rest of it."""
    lines = shell_words(job)
    if job.nodes > 1:
        lines += [
            "# The operator numbers pods in RANK; dialogkit must not take that for the number of a process.",
            'set -- "$@" --node-rank "$RANK" --rendezvous "$MASTER_ADDR:$MASTER_PORT"',
            "unset RANK WORLD_SIZE",
        ]
    return "\n".join([*lines, 'exec dialogkit "$@"']) + "\n"


def _for_kubernetes(script: str) -> str:
    """Return a text that Kubernetes gives to a shell as it was: it reads `$(NAME)` and `$$` in commands itself."""
    return re.sub(r"\$(?=[$(])", "$$", script)
