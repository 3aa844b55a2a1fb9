"""What may be the image of a deployment, and what a container of it gets of its machine."""

import re

import pytest

from backplane.domain.deployments import IMAGE_PATTERN, image_of_registry
from controller.deployments.containers.plan import ContainerHost, replica_words
from tests.deployed_agents import agent_manifest, deployment_of, revision_of


@pytest.mark.parametrize("image", ["support", "agents/support:1", "localhost:5000/a/b@sha256:" + "0" * 64])
def test_a_name_in_a_registry_is_taken(image: str) -> None:
    assert re.match(IMAGE_PATTERN, image)


@pytest.mark.parametrize(
    "image", ["dir:/srv/image", "oci:/srv/image", "docker-archive:/srv/a.tar", "--volume", "a:b:c"]
)
def test_a_file_of_the_engines_machine_is_no_image(image: str) -> None:
    assert not re.match(IMAGE_PATTERN, image)


def test_a_transport_is_no_registry() -> None:
    with pytest.raises(ValueError, match="no registry"):
        image_of_registry("dir:1/image")
    assert image_of_registry("registry:5000/image") == "registry:5000/image"


def test_a_container_gets_no_proxy_of_its_machine() -> None:
    manifest = agent_manifest(environment={"NO_PROXY": "its own"})
    words = replica_words("name", "0123", deployment_of(revision_of(manifest)), ContainerHost("p", "127.0.0.1", None))
    assert {"--env=HTTP_PROXY=", "--env=https_proxy=", "--env=NO_PROXY=its own"} <= set(words)
