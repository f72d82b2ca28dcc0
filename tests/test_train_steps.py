"""What each step of a run does that no other does."""

from hyena_vision.training import loop


def test_every_step_draws_its_own_random_numbers(run, monkeypatch):
    real, seeds = loop.seed_generators, []
    monkeypatch.setattr(loop, "seed_generators", lambda seed: seeds.append(seed) or real(seed))
    run("seeds")
    assert len(seeds) == len(set(seeds)) == 6  # 24 images in batches of 8, twice
