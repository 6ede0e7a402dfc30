"""Training: resume to the same bits, refuse foreign checkpoints, notice divergence, keep domains apart."""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from lazyseg import ablation, training
from lazyseg.core import LazysegError
from lazyseg.data import Films, get_films, get_source
from lazyseg.exercises import teach
from lazyseg.models import Outliner, PupilScorer
from lazyseg.training import GeneratorScorer, Translator, fit_method, method

TINY = dict(width=8, blocks=1, critic_width=8, critic_steps=2)


@pytest.fixture(scope="module")
def films():
    rng = np.random.default_rng(0)
    film = rng.integers(0, 255, (40, 32, 32), dtype=np.uint8)
    table = pd.DataFrame(dict(path=[f"{i}.png" for i in range(40)], patient=[f"p{i}" for i in range(40)], labels="", diseased=np.arange(40) % 2 == 1,
                              split=["train"] * 30 + ["valid"] * 10))
    return Films(film=film, table=table)


def weights(scorer):
    return torch.cat([v.flatten().float() for v in scorer.generator.state_dict().values()])


@pytest.mark.parametrize("name", ["lazyseg", "cyclegan", "paper"])
def test_a_stopped_training_ends_with_the_same_bits(films, tmp_path, name):
    whole = fit_method(films, name, "smoke", epochs=4, **TINY)
    import lazyseg.training as training
    after_epoch = training.Checkpoint.after_epoch

    def stop_after_two(self):
        after_epoch(self)
        if self.learn.epoch == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Checkpoint, "after_epoch", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            fit_method(films, name, "smoke", epochs=4, folder=tmp_path, **TINY)
    resumed = fit_method(films, name, "smoke", epochs=4, folder=tmp_path, **TINY)
    assert torch.equal(weights(whole), weights(resumed))
    assert len(resumed.learn.costs.epochs) == 4


def test_a_training_that_is_stopped_twice_ends_with_the_same_bits(films, tmp_path):
    "The second time while it passes over the epochs that are done, which fastai ends as it ends any other."
    whole, runs = fit_method(films, "lazyseg", "smoke", epochs=4, **TINY), []
    class Stop(Callback):
        order = 80 # after the checkpoint
        def after_epoch(self):
            runs.append(self.learn.epoch)
            if runs in ([0, 1, 2], [0, 1, 2, 0]): raise KeyboardInterrupt
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt): fit_method(films, "lazyseg", "smoke", epochs=4, folder=tmp_path, cbs=[Stop()], **TINY)
        assert training.read_state(tmp_path / "checkpoint.pt")["epoch"] == 3
    resumed = fit_method(films, "lazyseg", "smoke", epochs=4, folder=tmp_path, **TINY)
    assert torch.equal(weights(whole), weights(resumed)) and len(resumed.learn.costs.epochs) == 4


def test_what_is_left_is_told_from_the_epochs_of_this_call(capsys, monkeypatch):
    pace, now = training.Pace(), [0.]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    pace.learn = SimpleNamespace(epoch=0, n_epoch=100)
    pace.before_fit()
    for epoch in range(100):
        pace.learn.epoch = epoch
        if epoch >= 90:
            pace.before_train()
            now[0] += 120
        pace.after_epoch()
    assert "epoch 92 of 100: 4 minutes, about 16 more" in capsys.readouterr().out


def stopped(films, folder, **kw):
    "A training that is stopped after its first epoch."
    import lazyseg.training as training
    after_epoch = training.Checkpoint.after_epoch

    def stop(self):
        after_epoch(self)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Checkpoint, "after_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            fit_method(films, "lazyseg", "smoke", epochs=3, folder=folder, **{**TINY, **kw})


@pytest.mark.parametrize("other", [dict(area=.3), dict(seed=1), dict(epochs=4)])
def test_an_unfinished_training_of_other_settings_is_not_lost(films, tmp_path, other):
    stopped(films, tmp_path)
    with pytest.raises(LazysegError, match="unfinished training with other settings"):
        fit_method(films, "lazyseg", "smoke", folder=tmp_path, **{**dict(epochs=3), **TINY, **other})


def test_films_that_were_mended_in_their_place_are_other_films(films):
    mended = films.film.copy()
    mended[-1] = 255 - mended[-1]
    assert training.fingerprint(films) != training.fingerprint(Films(film=mended, table=films.table)), "the last film counts as the first does"


def test_a_finished_training_is_not_taken_for_another_seed(films, tmp_path):
    fit_method(films, "lazyseg", "smoke", epochs=1, folder=tmp_path, **TINY)
    other = fit_method(films, "lazyseg", "smoke", epochs=1, seed=1, folder=tmp_path, **TINY)
    assert torch.equal(weights(other), weights(fit_method(films, "lazyseg", "smoke", epochs=1, seed=1, **TINY)))


def test_a_pupil_is_taught_anew_when_the_exercise_book_is_another(films, tmp_path, monkeypatch):
    "The first stage, which the book has no part in, is taken up; so is the pupil, as long as the book is the same."
    lessons, learned = [], []
    monkeypatch.setattr(training, "teach", lambda *a, **k: lessons.append(1) or teach(*a, **k))
    for version in (training.BOOK_VERSION, training.BOOK_VERSION, training.BOOK_VERSION + 1):
        monkeypatch.setattr(training, "BOOK_VERSION", version)
        learned.append(fit_method(films, "lazyseg", "smoke", epochs=2, folder=tmp_path, lessons=1, **TINY))
    assert len(lessons) == 2 and all(torch.equal(weights(o.teacher), weights(learned[0].teacher)) for o in learned)


def test_the_row_of_a_method_says_what_its_book_is_like(films, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "teach", lambda scorer, *a, **k: asked.append(k) or PupilScorer(Outliner(TINY["width"]), scorer))
    fit_method(films, "lazyseg", "smoke", epochs=1, share=.3, near=1/8, blur=1/16, place=.7, lessons=3, **TINY)
    assert [[a[k] for k in ("share", "near", "blur", "place")] for a in asked] == [[.3, 1/8, 1/16, .7]] + 2*[[.5, 1/8, 1/64, .7]]


def knows(films):
    "A pupil that marks what the truth marks, for films of which it says nothing by itself; only a phantom can."
    truth = {f.tobytes(): t for f, t in zip(films.film, films.truth)}
    return lambda x: torch.stack([torch.from_numpy(truth[(f * 255).round().byte().numpy().tobytes()].astype("float32")) for f in x[:, 0]])


def test_what_is_taken_up_again_lies_where_the_weights_lie(tmp_path, monkeypatch):
    "The optimiser's state goes to the device of the weights at the moment it is loaded, so the weights have to be there first; a kept pupil goes to its teacher."
    films, order = get_films(get_source("phantom", disease="pneumonia", n=60, size=32, severity=.8), 32), []
    monkeypatch.setattr(PupilScorer, "__call__", lambda self, x: knows(films)(x)*(.5 + self.pupil(x).sigmoid()[:, 0].detach()/2))
    run = lambda: fit_method(films, "lazyseg", "smoke", epochs=1, folder=tmp_path, lessons=1, **TINY)
    first, move, fill = run(), torch.nn.Module.to, torch.optim.Optimizer.load_state_dict
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *a, **k: order.append(type(self).__name__) or move(self, *a, **k))
    monkeypatch.setattr(torch.optim.Optimizer, "load_state_dict", lambda self, state: order.append("state") or fill(self, state))
    assert same_weights(run().pupil, first.pupil)
    assert order.index("Translator") < order.index("state") and "Outliner" in order


def test_lessons_go_on_where_they_stopped(tmp_path, monkeypatch):
    "Each lesson is taught once, by the pupil of the one before, and a run that was stopped between two ends with the same bits."
    films = get_films(get_source("phantom", disease="pneumonia", n=60, size=32, severity=.8), 32)
    monkeypatch.setattr(PupilScorer, "__call__", lambda self, x: knows(films)(x)*(.5 + self.pupil(x).sigmoid()[:, 0].detach()/2))
    taught = []
    monkeypatch.setattr(training, "teach", lambda scorer, *a, **k: taught.append(scorer) or teach(scorer, *a, **k))
    run = lambda lessons, folder=None: fit_method(films, "lazyseg", "smoke", epochs=2, folder=folder, lessons=lessons, **TINY)
    one, two = run(1), run(2)
    assert [type(s) for s in taught] == [GeneratorScorer, GeneratorScorer, PupilScorer] and not same_weights(one.pupil, two.pupil)
    taught.clear()
    spent = lambda: training.read_state(tmp_path/"pupil.pt")["seconds"]
    stopped, first = run(1, tmp_path), spent()
    then, both = run(2, tmp_path), spent()
    again = run(2, tmp_path)
    assert [type(s) for s in taught] == [GeneratorScorer, PupilScorer]
    assert same_weights(stopped.pupil, one.pupil) and same_weights(then.pupil, two.pupil) and same_weights(again.pupil, two.pupil)
    assert 0 < then.overlap == again.overlap == two.overlap != one.overlap  # a resumed run knows how far its outlines keep to the usual place
    assert spent() == both > first and again.trained_seconds > both  # the time of both lessons counts, in whichever call they were taught
    assert same_weights(run(1, tmp_path).pupil, one.pupil)  # who asks for fewer lessons does not get the pupil of more


def test_twenty_outlines_are_asked_for_first_and_shown_last(tmp_path, monkeypatch):
    "Up to the outlines all is as without; they are looked for before anything is trained; one that is drawn anew is learned anew."
    films, shown, taught = get_films(get_source("phantom", disease="pneumonia", n=60, size=32, severity=.8), 32), [], []
    right = training.correct
    monkeypatch.setattr(training, "correct", lambda scorer, f, drawn, *a: shown.append((scorer.pupil, len(drawn), *a)) or right(scorer, f, drawn, *a))
    monkeypatch.setattr(training, "teach", lambda scorer, *a, **k: taught.append(a[1]) or teach(scorer, *a, **k))
    run = lambda f, name, **k: fit_method(f, name, "smoke", epochs=2, seed=3, folder=tmp_path, lessons=1, **k, **TINY)
    with pytest.raises(LazysegError, match="has an outline"): run(replace(films, truth=None), "lazyseg+20")
    assert not list(tmp_path.iterdir())
    plain, corrected = run(films, "lazyseg"), run(films, "lazyseg+20")
    near = [torch.allclose(v.float(), w.float(), rtol=1e-3, atol=1e-6) for v, w in zip(shown[0][0].state_dict().values(), plain.pupil.state_dict().values())]
    assert len(shown) == 1 and all(near) and shown[0][1] == corrected.outlined == 20 # what is kept is rounded to 16 bits, what goes on is not
    assert shown[0][2:4] == (-(-taught[0]//2), 3) and shown[0][-1] == .47 # half as many steps as a lesson, the run's seed, the row's place
    assert not same_weights(plain.pupil, corrected.pupil) and same_weights(plain.teacher.generator, corrected.teacher.generator)
    again = run(films, "lazyseg+20")
    assert same_weights(again.pupil, corrected.pupil) and None is not again.overlap == corrected.overlap and len(shown) == 1 and again.trained_seconds > plain.trained_seconds
    other = replace(films, truth=np.roll(films.truth, 3, axis=1))
    assert not same_weights(run(other, "lazyseg+20").pupil, corrected.pupil) and len(shown) == 2
    assert run(films, "lazyseg+20", outlined=4).outlined == 4 and same_weights(run(films, "lazyseg").pupil, plain.pupil)
    assert len(taught) == 1 # and the pupil of the labels is the same one in all of them


def test_a_pupil_that_marks_nothing_is_corrected_all_the_same(monkeypatch):
    films, shown = get_films(get_source("phantom", disease="pneumonia", n=60, size=32, severity=.8), 32), []
    right = training.correct
    monkeypatch.setattr(PupilScorer, "__call__", lambda self, x: torch.zeros(len(x), *x.shape[2:]))
    monkeypatch.setattr(training, "correct", lambda *a: shown.append(a[0]) or right(*a))
    corrected = fit_method(films, "lazyseg+20", "smoke", epochs=2, **TINY)
    assert len(shown) == 1 and corrected.outlined == 20 and not same_weights(shown[0].pupil, corrected.pupil)


@pytest.mark.parametrize("wrong", [dict(outlined=-1), dict(lessons=0), dict(exercises=0.)])
def test_outlines_without_a_pupil_are_refused_before_anything_is_trained(films, monkeypatch, wrong):
    monkeypatch.setattr(training, "get_learner", lambda *a, **k: pytest.fail("it began to train"))
    with pytest.raises(LazysegError, match="a pupil to correct"): fit_method(films, "lazyseg+20", "smoke", **wrong)


def test_a_pupil_that_marks_nothing_is_the_last_and_that_is_said(films, monkeypatch, capsys):
    monkeypatch.setattr(PupilScorer, "__call__", lambda self, x: torch.zeros(len(x), *x.shape[2:]))
    one = fit_method(films, "lazyseg", "smoke", epochs=2, lessons=1, **TINY)
    assert "Lesson" not in capsys.readouterr().out
    two = fit_method(films, "lazyseg", "smoke", epochs=2, lessons=2, **TINY)
    assert same_weights(one.pupil, two.pupil) and "Lesson 2 of 2 is left out" in capsys.readouterr().out


def same_weights(a, b): return all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 cut off", b"\x80\x04cposix\nsystem\n(S'touch up'\ntR."])
def test_a_damaged_checkpoint_is_named(films, tmp_path, damage):
    (tmp_path / "checkpoint.pt").write_bytes(damage)
    with pytest.raises(LazysegError, match="checkpoint.pt can't be read .* Delete it"):
        fit_method(films, "lazyseg", "smoke", epochs=1, folder=tmp_path, **TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_divergence_is_noticed_and_said(films):
    with pytest.raises(LazysegError, match="Training diverged"):
        fit_method(films, "lazyseg", "smoke", epochs=8, lr=1e30, average=0., **TINY)


def test_both_stages_learn_nearly_the_same_in_16_bits(films):
    wide, narrow, other = (fit_method(films, "lazyseg", "smoke", epochs=2, seed=seed, device=device, **TINY)
                           for device, seed in (("cpu", 0), ("cpu16", 0), ("cpu", 1)))
    losses = [s.learn.costs.epochs[0]["loss"] for s in (wide, narrow)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=.01)
    far = lambda a, b: float((weights(a) - weights(b)).norm())
    assert 0 < far(wide, narrow) < .5 * far(wide, other)
    assert all(torch.isfinite(v).all() for v in narrow.pupil.state_dict().values())


def test_swapped_domains_make_another_generator(films):
    swapped = Films(film=films.film, table=films.table.assign(diseased=~films.table.diseased))
    one, other = (fit_method(f, "lazyseg", "smoke", epochs=1, **TINY) for f in (films, swapped))
    assert not torch.equal(weights(one), weights(other))


def test_every_method_gives_maps_that_are_not_negative(films):
    batch = torch.from_numpy(films.film[:4])[:, None].float() / 255
    for name in ("lazyseg", "cyclegan", "paper"):
        m = method(name, **TINY)
        maps = GeneratorScorer(Translator(m).generator, m.map, name)(batch)
        assert maps.shape == (4, 32, 32) and (maps >= 0).all() and torch.isfinite(maps).all()


def test_one_domain_missing_is_said(films):
    with pytest.raises(LazysegError):
        fit_method(Films(film=films.film, table=films.table.assign(diseased=True)), "lazyseg", "smoke", **TINY)


def test_variants_of_the_second_stage_share_the_first(tmp_path, monkeypatch):
    "The game is played once; what comes out, and the diary on the way, are those of a run that played it alone."
    films = get_films(get_source("phantom", disease="pneumonia", n=60, size=32, severity=.8), 32)
    monkeypatch.setenv("LAZYSEG_CACHE", str(tmp_path))
    alone, maps = ablation.try_variant(films, "less blur", "smoke", every=1, epochs=2)
    assert not list(tmp_path.rglob("diary.json"))
    ablation.try_variant(films, "as it is", "smoke", every=1, epochs=2, keep=True)
    diary, = tmp_path.rglob("diary.json")
    begun = diary.stat().st_mtime_ns
    shared, same = ablation.try_variant(films, "less blur", "smoke", every=1, epochs=2, keep=True)
    assert diary.stat().st_mtime_ns == begun and [e["epoch"] for e in shared["diary"]] == [1, 2]
    assert all(shared[k] == alone[k] for k in ("result", "diary", "choices"))
    assert all(np.array_equal(maps[k], same[k]) for k in maps)
