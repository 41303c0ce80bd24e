"""Which ranks compute the same, and which sum: W ranks are G groups of r members, and r columns of G ranks.

Rank q is member q // G of group q % G. So members of a group sit on different hosts where a launcher fills host after
host, and a host that fails takes one member of a group at most, if there are r hosts or more.
"""

from dataclasses import dataclass

from draco.errors import JobError


@dataclass(frozen=True)
class Layout:
    """The ranks 0 to `world` - 1 as groups of `redundancy` members.

    Raises:
        JobError: there are fewer than two members, or the groups do not come out even.
    """

    world: int
    redundancy: int

    def __post_init__(self) -> None:
        if self.redundancy < 2:
            raise JobError([f"redundancy is {self.redundancy}: two replicas at least must compute the same"])
        if self.world % self.redundancy:
            raise JobError(
                [
                    f"redundancy: groups of {self.redundancy} do not divide {self.world} ranks evenly; "
                    f"start {self.world - self.world % self.redundancy or self.redundancy} of them"
                ]
            )

    @property
    def count(self) -> int:
        """G, the number of groups: as many as plain data-parallel training would have ranks."""
        return self.world // self.redundancy

    @property
    def groups(self) -> list[list[int]]:
        """The ranks of each group, in order of members."""
        return [list(range(group, self.world, self.count)) for group in range(self.count)]

    @property
    def columns(self) -> list[list[int]]:
        """The ranks of each column: the members of the same number, one of each group. They sum their gradients."""
        return [list(range(first, first + self.count)) for first in range(0, self.world, self.count)]

    def group_of(self, rank: int) -> int:
        """Return the number of a rank's group."""
        return rank % self.count

    def member_of(self, rank: int) -> int:
        """Return which member of its group a rank is."""
        return rank // self.count
