"""What a child run is given from outside names artefacts of the store, and nothing else on the disk."""

import pytest

from potstill.arms import Arm
from potstill.artifacts import ArtifactRef
from potstill.errors import NotAuthorisedError
from tasks.parameters import own, own_arm

pytestmark = pytest.mark.flow


def ref(uri: str) -> ArtifactRef:
    return ArtifactRef(kind="SFTDataset", uri=uri, digest="0" * 64, num_rows=1)


@pytest.mark.parametrize(
    "uri",
    ["/etc", "../secrets", "artifacts/../../etc", "artifacts/x/../../../etc", "", ".", "keys/train", "s3://bucket/x"],
)
def test_a_reference_out_of_the_store_is_refused_and_named(uri: str) -> None:
    with pytest.raises(NotAuthorisedError, match="is no artefact of the store"):
        own(ref(uri))
    with pytest.raises(NotAuthorisedError):
        own_arm(Arm(name="candidate", student=ref(uri)))


@pytest.mark.parametrize("other", [{"kind": "../x"}, {"digest": "../" * 8}, {"digest": "F" * 64}])
def test_a_reference_that_is_named_by_a_path_is_refused(other: dict[str, str]) -> None:
    with pytest.raises(NotAuthorisedError, match="is no artefact of the store"):
        own(ref("artifacts/SFTDataset/0123456789ab").model_copy(update=other))


def test_a_reference_into_the_store_is_taken() -> None:
    inside = ref("artifacts/SFTDataset/0123456789ab")
    assert own(inside) is inside
    arm = Arm(name="candidate", student=inside)
    assert own_arm(arm) is arm
