"""ECR: what was pushed to the registry (nodes/registry.py) is known to the API; what the API deletes is gone there."""

from typing import Any

from moto.ecr.models import ECRBackend

from fake_aws.world import World


def fill(world: World) -> None:
    """See gaps; with nodes, the control endpoint has the registry's parts."""
    for name in ("describe_images", "list_images", "batch_get_image", "batch_delete_image", "delete_repository"):
        _look_first(world, name)
    _delete_there(world)


def _look_first(world: World, name: str) -> None:
    original = getattr(ECRBackend, name)

    def looked(self: Any, repository_name: str, *args: Any, **options: Any) -> Any:
        look = world.parts.get("look-into-registry")
        if look and repository_name in self.repositories:
            look({"repository": repository_name})
        return original(self, repository_name, *args, **options)

    setattr(ECRBackend, name, looked)


def _delete_there(world: World) -> None:
    originals = ECRBackend.batch_delete_image, ECRBackend.delete_repository

    def batch_delete_image(self: Any, repository_name: str, *args: Any, **options: Any) -> Any:
        answered = originals[0](self, repository_name, *args, **options)
        left = {image.get_image_digest() for image in self.repositories[repository_name].images}
        for digest in {one.get("imageDigest") for one in answered["imageIds"]} - left - {None}:
            _delete(world, repository=repository_name, digest=digest)
        return answered

    def delete_repository(self: Any, repository_name: str, *args: Any, **options: Any) -> Any:
        answered = originals[1](self, repository_name, *args, **options)
        _delete(world, repository=repository_name)
        return answered

    ECRBackend.batch_delete_image = batch_delete_image
    ECRBackend.delete_repository = delete_repository


def _delete(world: World, **what: str) -> None:
    if "delete-from-registry" in world.parts:
        world.parts["delete-from-registry"](what)
