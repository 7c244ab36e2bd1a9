"""How llama.cpp splits a step into passes through the model, and how to need fewer of them.

A context with a stream for each sequence computes together only sequences whose ids follow each other
(`llama_batch_allocr::split_equal`); each gap is one more pass, which reads all weights again. Where that is
dear, as on a GPU, an idle sequence in the gap is given a token of no use, which is taken out again.
"""

from collections.abc import Mapping

from astraea_local.scheduler.speeds import Speeds


def fillers(computed: Mapping[int, int], idle: Mapping[int, int], speeds: Speeds) -> list[int]:
    """Those idle sequences with which the step is quicker; both map ids to tokens of context."""
    found: list[int] = []
    before, longest = range(0), 0
    for group in _groups(sorted(computed)):
        gap, joint = range(before.stop, group.start), range(before.start, group.stop)
        mine = max(computed[i] for i in group)
        most = max(longest, mine, *(idle.get(i, 0) for i in gap), 0)
        apart = _pass_s(before, longest, speeds) + _pass_s(group, mine, speeds)
        if before and idle.keys() >= set(gap) and _pass_s(joint, most, speeds) < apart:
            found.extend(gap)
            before, longest = joint, most
        else:
            before, longest = group, mine
    return found


def _groups(ids: list[int]) -> list[range]:
    """Ascending ids as ranges without gaps."""
    starts = [i for i in ids if i - 1 not in ids]
    ends = [i + 1 for i in ids if i + 1 not in ids]
    return [range(start, end) for start, end in zip(starts, ends, strict=True)]


def _pass_s(sequences: range, longest: int, speeds: Speeds) -> float:
    """All attend over as many cells as the longest of them."""
    return speeds.decode_step(len(sequences), len(sequences) * longest)
