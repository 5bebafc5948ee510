"""A run on Kubernetes: a Job on one machine, Kubeflow's PyTorchJob on several."""

import re
from pathlib import PurePosixPath
from typing import Any

from dialogkit.errors import wrong_setting
from dialogkit.hints import Change
from dialogkit.redaction import without_secrets
from dialogkit.services.cluster.job import Commands, Job, heading, require_no_secrets, shell_lines

RETRIES = 6
GRACE_S = 300
"""Seconds that a pod has to save when it is evicted."""
FOLDER = "/workspace"
"""Where the claim is mounted; the working folder of the run."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")
_OTHER_IMAGE = Change({"image": "registry.example/dialogkit:1"})
_LONGEST_NAME = 50
"""Characters of a job's name: the names of its pods add `-worker-0` and the like, and may have 63."""


def kubernetes_manifest(
    job: Job, commands: Commands, *, image: str, claim: str, namespace: str | None, secret: str | None
) -> str:
    """Return a manifest for `kubectl apply`: a Job, or a PyTorchJob for several nodes.

    Args:
        job: the run.
        commands: what a pod calls.
        image: container image in which `dialogkit` is installed.
        claim: PersistentVolumeClaim for models, runs and caches, so that they outlive a pod.
        namespace: namespace. None: kubectl's.
        secret: Secret whose entries, such as WANDB_API_KEY, become environment variables of the run.

    Raises: ConfigError for an invalid name, and for a secret in the manifest.
    """
    import yaml

    _require_names(image=image, claim=claim, namespace=namespace, secret=secret)
    _require_on_claim(job)
    labels = {"app.kubernetes.io/name": "dialogkit"}
    pod = _pod(job, commands, image=image, claim=claim, secret=secret)
    template = {"metadata": {"labels": labels}, "spec": pod}
    version, kind, spec = (
        ("kubeflow.org/v1", "PyTorchJob", _pytorch_job(job, template))
        if job.nodes > 1
        else ("batch/v1", "Job", _job(job, template))
    )
    manifest = {
        "apiVersion": version,
        "kind": kind,
        "metadata": {
            "name": kubernetes_name(job.run),
            **({"namespace": namespace} if namespace else {}),
            "labels": labels,
            "annotations": {"dialogkit/run": job.run},
        },
        "spec": spec,
    }

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]  # of a library without types
        """Writes multi-line texts as blocks, and no references, so that people can read it."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    drawn = yaml.dump(manifest, Dumper=Dumper, sort_keys=False, width=10_000)
    return require_no_secrets("\n".join([*heading(job, commands, repeats=False), drawn]))


def _require_names(*, image: str, claim: str, namespace: str | None, secret: str | None) -> None:
    """Raise ConfigError for a name that Kubernetes would reject, and for a secret in the place of a name."""
    if secret is not None and without_secrets([f"x={secret}"]) != [f"x={secret}"]:
        problem = "must be the name of a Secret, and is a secret itself"
        raise wrong_setting("secret", problem, Change({"secret": "wandb"}))
    for name, value in (("claim", claim), ("namespace", namespace), ("secret", secret)):
        if value is not None and not _LABEL.fullmatch(value):
            problem = f"{value!r} must be lower-case letters, digits and dashes"
            raise wrong_setting(name, problem, Change({name: "dialogkit"}))
    if "@" in image.rpartition("/")[0]:
        problem = "must not contain a user or password: others can read job files"
        raise wrong_setting("image", problem, _OTHER_IMAGE)
    if not _IMAGE.fullmatch(image):
        raise wrong_setting("image", f"{image!r} is not a valid image name", _OTHER_IMAGE)


def _require_on_claim(job: Job) -> None:
    """Raise ConfigError for a path that no pod sees: only what is on the claim outlives a pod."""
    places = {
        "runtime.output_dir": job.output,
        "data.dataset": job.config.data.dataset,
        "model.source": job.config.model.source or "",
    }
    for setting, place in places.items():
        path = PurePosixPath(place)
        if path.is_absolute() and not path.is_relative_to(FOLDER):
            hint = f"{path.name} instead" if setting == "model.source" else Change({setting: path.name})
            raise wrong_setting(setting, f"{place!r} is not on the claim, which a pod sees as {FOLDER}", hint)


def kubernetes_name(run: str) -> str:
    """Return the name of a run as Kubernetes allows it: lower-case letters, digits and dashes, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    name = name if name[:1].isalpha() else f"run-{name}"
    return name[:_LONGEST_NAME].rstrip("-")


def _job(job: Job, template: dict[str, Any]) -> dict[str, Any]:
    """Return what a Job consists of."""
    evicted = [{"type": "DisruptionTarget", "status": "True"}]
    failed = {"containerName": "train", "operator": "In", "values": [2, 3]}
    return {
        "completionMode": "Indexed",
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": RETRIES,
        # An evicted pod is not a failure; wrong input (2) and a diverged training (3) would fail again.
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": evicted},
                {"action": "FailJob", "onExitCodes": failed},
            ]
        },
        **({"activeDeadlineSeconds": job.time_s} if job.time_s else {}),
        "template": template,
    }


def _pytorch_job(job: Job, template: dict[str, Any]) -> dict[str, Any]:
    """Return what a PyTorchJob consists of."""
    replicas = {"Master": 1, "Worker": job.nodes - 1}
    return {
        "nprocPerNode": str(job.devices),
        "runPolicy": {
            "backoffLimit": RETRIES,
            "cleanPodPolicy": "Running",
            **({"activeDeadlineSeconds": job.time_s} if job.time_s else {}),
        },
        "pytorchReplicaSpecs": {
            # When one process is lost, the others exit with any code, so all codes are retried.
            name: {"replicas": count, "restartPolicy": "OnFailure", "template": template}
            for name, count in replicas.items()
        },
    }


def _pod(job: Job, commands: Commands, *, image: str, claim: str, secret: str | None) -> dict[str, Any]:
    resources: dict[str, Any] = {"cpu": str(job.cpus)}
    if job.memory:
        resources["memory"] = f"{job.memory}i"
    if job.gpus:
        resources["nvidia.com/gpu"] = str(job.gpus)
    environment = {
        "HF_HOME": f"{FOLDER}/.cache/huggingface",
        "DIALOGKIT_CACHE": f"{FOLDER}/.cache/dialogkit",
        "OMP_NUM_THREADS": str(job.threads),
    }
    several = job.nodes > 1
    return {
        **({} if several else {"restartPolicy": "Never"}),
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [
            {
                "name": "pytorch" if several else "train",
                "image": image,
                "command": ["/bin/sh", "-c", _for_kubernetes(_script(job, commands))],
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


def _script(job: Job, commands: Commands) -> str:
    """Return what a pod runs: `train` or, once the run exists, its resumption."""
    lines = shell_lines(job, commands)
    if job.nodes > 1:
        lines += [
            "# The operator numbers pods in RANK; dialogkit must not take that for the rank of a process.",
            f'set -- "$@" {commands.node_rank} "$RANK" {commands.rendezvous} "$MASTER_ADDR:$MASTER_PORT"',
            "unset RANK WORLD_SIZE",
        ]
    return "\n".join([*lines, 'exec dialogkit "$@"']) + "\n"


def _for_kubernetes(script: str) -> str:
    """Return a text that Kubernetes passes on unchanged: it expands `$(NAME)` and `$$` in commands itself."""
    return re.sub(r"\$(?=[$(])", "$$", script)
