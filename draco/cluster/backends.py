"""The kinds of cluster, by the word that CLUSTER= takes."""

from collections.abc import Mapping

from draco.cluster import docker, netns, ssh
from draco.cluster.nodes import Backend

BACKENDS: Mapping[str, Backend] = {"docker": docker, "netns": netns, "ssh": ssh}
