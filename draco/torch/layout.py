"""Which ranks compute the same, and which sum: W ranks are G groups of r members, and r columns of G ranks.

Rank q is member q // G of group q % G. So members of a group sit on different hosts where a launcher fills host after
host, and a host that fails takes one member of a group at most, if there are r hosts or more.

Where a sample of steps is checked, each rank has its own samples, all sum together, and rank q is checked by the ranks
q + G, q + 2 G, ... modulo W, with G = W // r rounded down.
"""

from dataclasses import dataclass

from draco.errors import JobError


@dataclass(frozen=True)
class Layout:
    """The ranks 0 to `world` - 1 as groups of `redundancy` members, which overlap if steps are `sampled`.

    Raises:
        JobError: there are fewer than two members, fewer ranks than that, or the groups do not come out even.
    """

    world: int
    redundancy: int
    sampled: bool = False

    def __post_init__(self) -> None:
        if self.redundancy < 2:
            raise JobError([f"redundancy is {self.redundancy}: two replicas at least must compute the same"])
        if self.world < self.redundancy or (self.world % self.redundancy and not self.sampled):
            raise JobError(
                [
                    f"redundancy: groups of {self.redundancy} do not divide {self.world} ranks evenly; "
                    f"start {self.world - self.world % self.redundancy or self.redundancy} of them"
                ]
            )

    @property
    def count(self) -> int:
        """How many ranks plain data-parallel training would have for the same samples: G, or all where sampled."""
        return self.world if self.sampled else self.world // self.redundancy

    @property
    def groups(self) -> list[list[int]]:
        """The ranks of each group, in order of members; where sampled, each rank with those that check it."""
        apart = self.world // self.redundancy
        return [[(first + k * apart) % self.world for k in range(self.redundancy)] for first in range(self.count)]

    @property
    def checks(self) -> list[list[tuple[int, int]]]:
        """Where sampled: in each round all pairs (rank, lender), of which the rank recomputes the lender's step."""
        return [[(group[k], group[0]) for group in self.groups] for k in range(1, self.redundancy)]

    @property
    def columns(self) -> list[list[int]]:
        """The ranks of each column, one of each group; where sampled, all are one. They sum their gradients."""
        return [list(range(first, first + self.count)) for first in range(0, self.world, self.count)]

    def group_of(self, rank: int) -> int:
        """Return the number of a rank's group."""
        return rank % self.count

    def member_of(self, rank: int) -> int:
        """Return which member of its group a rank is."""
        return rank // self.count
