"""The fields that a job file may have, with their types and rules, after the public references of the two APIs.

Kubernetes: batch/v1 Job and core/v1 PodTemplateSpec. Kubeflow: kubeflow.org/v1 PyTorchJob. A field that is not
here is an error, so that one that is misspelt is seen.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$")]
Key = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")
]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+([.][0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A part of a manifest; YAML's types must be right, as the server takes no text for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Part):
    name: Name
    namespace: Label | None = None
    labels: dict[Key, LabelValue] = {}
    annotations: dict[Key, str] = {}


class EnvVar(Part):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: str


class LocalReference(Part):
    name: Label


class EnvFrom(Part):
    secretRef: LocalReference


class Resources(Part):
    limits: dict[str, Quantity]
    requests: dict[str, Quantity]

    @model_validator(mode="after")
    def check(self) -> Self:
        gpu = "nvidia.com/gpu"
        assert self.limits.get(gpu) == self.requests.get(gpu), "GPUs cannot be overcommitted"
        return self


class VolumeMount(Part):
    name: Label
    mountPath: str


class Container(Part):
    name: Label
    image: Annotated[str, Field(min_length=1)]
    command: list[str]
    workingDir: str
    env: list[EnvVar]
    envFrom: list[EnvFrom] = []
    resources: Resources
    volumeMounts: list[VolumeMount]


class Claim(Part):
    claimName: Label


class EmptyDir(Part):
    medium: Literal["", "Memory"] = ""


class Volume(Part):
    name: Label
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        assert (self.persistentVolumeClaim is None) != (self.emptyDir is None), "a volume has one source"
        return self


class Pod(Part):
    restartPolicy: Literal["Always", "OnFailure", "Never"] | None = None
    terminationGracePeriodSeconds: Count
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume]

    @model_validator(mode="after")
    def check(self) -> Self:
        volumes = {volume.name for volume in self.volumes}
        assert all(mount.name in volumes for part in self.containers for mount in part.volumeMounts)
        return self


class TemplateMetadata(Part):
    labels: dict[Key, LabelValue] = {}


class Template(Part):
    metadata: TemplateMetadata
    spec: Pod


class OnExitCodes(Part):
    containerName: Label | None = None
    operator: Literal["In", "NotIn"]
    values: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1, max_length=255)]

    @model_validator(mode="after")
    def check(self) -> Self:
        assert self.values == sorted(set(self.values)), "ordered, and none twice"
        assert not (self.operator == "In" and 0 in self.values)
        return self


class OnPodCondition(Part):
    type: str
    status: Literal["True", "False", "Unknown"]


class Rule(Part):
    action: Literal["FailJob", "FailIndex", "Ignore", "Count"]
    onExitCodes: OnExitCodes | None = None
    onPodConditions: list[OnPodCondition] | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        assert (self.onExitCodes is None) != (self.onPodConditions is None), "one of both"
        return self


class FailurePolicy(Part):
    rules: Annotated[list[Rule], Field(max_length=20)]


class JobSpec(Part):
    completionMode: Literal["NonIndexed", "Indexed"]
    completions: Count
    parallelism: Count
    backoffLimit: Count
    podFailurePolicy: FailurePolicy
    activeDeadlineSeconds: Annotated[int, Field(ge=1)] | None = None
    template: Template

    @model_validator(mode="after")
    def check(self) -> Self:
        pod = self.template.spec
        assert pod.restartPolicy == "Never", "with a failure policy, pods are not started again in their place"
        names = {container.name for container in pod.containers}
        for rule in self.podFailurePolicy.rules:
            assert rule.onExitCodes is None or rule.onExitCodes.containerName in names
        return self


class Job(Part):
    apiVersion: Literal["batch/v1"]
    kind: Literal["Job"]
    metadata: Metadata
    spec: JobSpec


class RunPolicy(Part):
    backoffLimit: Count
    cleanPodPolicy: Literal["All", "Running", "None"]
    activeDeadlineSeconds: Annotated[int, Field(ge=1)] | None = None


class Replica(Part):
    replicas: Annotated[int, Field(ge=1)]
    restartPolicy: Literal["Always", "OnFailure", "Never", "ExitCode"]
    template: Template

    @model_validator(mode="after")
    def check(self) -> Self:
        assert any(container.name == "pytorch" for container in self.template.spec.containers)
        assert self.template.spec.restartPolicy is None, "the replica's own takes its place"
        return self


class Replicas(Part):
    Master: Replica
    Worker: Replica

    @model_validator(mode="after")
    def check(self) -> Self:
        assert self.Master.replicas == 1
        return self


class PyTorchJobSpec(Part):
    nprocPerNode: str
    runPolicy: RunPolicy
    pytorchReplicaSpecs: Replicas


class PyTorchJob(Part):
    apiVersion: Literal["kubeflow.org/v1"]
    kind: Literal["PyTorchJob"]
    metadata: Metadata
    spec: PyTorchJobSpec
