"""LinasSampler in an Optuna study of anything: here small, accurate forests for the digits of scikit-learn.

    python examples/linas_sampler.py

Takes about a minute on one core.
"""

from __future__ import annotations

import optuna
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import cross_val_score

from hanax.searchers import LinasSampler


def objective(trial: optuna.Trial) -> tuple[float, int]:
    forest = ExtraTreesClassifier(
        n_estimators=trial.suggest_int("trees", 5, 40, step=5),
        max_depth=trial.suggest_int("depth", 3, 12),
        criterion=trial.suggest_categorical("criterion", ["gini", "entropy"]),
        max_features=trial.suggest_float("features", 0.1, 0.5, step=0.1),
        random_state=0,
    )
    images, digits = load_digits(return_X_y=True)
    accuracy = float(cross_val_score(forest, images, digits, cv=3).mean())
    nodes = sum(tree.tree_.node_count for tree in forest.fit(images, digits).estimators_)
    trial.set_constraint("nodes", nodes - 5000)  # kept where at most 0
    return accuracy, nodes


def main(n_trials: int = 100) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=LinasSampler(seed=0))
    study.optimize(objective, n_trials=n_trials)
    for trial in sorted(study.best_trials, key=lambda trial: trial.values[1]):
        print(f"accuracy {trial.values[0]:.3f} with {trial.values[1]:.0f} nodes: {trial.params}")


if __name__ == "__main__":
    main()
