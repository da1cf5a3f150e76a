"""Studies: arms are trained or tuned and compared on unseen tasks, which decides claims.

`Study` describes one as data, and `run_experiment` runs it in a folder, from where it was stopped. The
experiments of the papers are studies too; `symmetrax list` shows their names. Running one needs the extra
`studies`: pip install "symmetrax[studies]".

>>> import optax, symmetrax as sx, tempfile
>>> descent = lambda hyper, task: optax.sgd(hyper["rate"])
>>> arms = [sx.studies.Tuned(f"rate {rate}", descent, (rate,), (0.0,)) for rate in (0.001, 0.05)]
>>> size = {"seeds": 2, "tasks": 8, "tuning_tasks": 4}
>>> study = sx.studies.Study("rates", "Which rate is better?", ["booth"], arms, **size)
>>> with tempfile.TemporaryDirectory() as folder:
...     path = sx.studies.run_experiment(study, out=folder + "/run", quiet=True)
...     sorted(file.name for file in path.iterdir() if file.name[0] != ".")
['config.json', 'losses.npz', 'report.html', 'results.json']
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
