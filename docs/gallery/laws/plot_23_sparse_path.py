"""
Which features matter? Exactly k of them
========================================

Instead of a penalty whose meaning depends on the data: a number of coefficients, chosen by cross-
validation, in scikit-learn's manner.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import lars_path

import sparse_accel as sa

data = load_diabetes()

# %%
# ``sparse_path`` fits every k and scores each on rows held out; ``one_se_k`` is the fewest within
# one standard error of the best.
path = sa.linear_model.sparse_path(
    sa.linear_model.SparseLinearRegression(),
    data.data,
    data.target,
    ks=range(1, 11),
    cv=5,
    names=data.feature_names,
)
print(path)
chosen = path.estimator(path.one_se_k)
print(f"k = {path.one_se_k}:", ", ".join(np.array(data.feature_names)[chosen.support_]))

# %%
# Beside the lasso's path: there coefficients come in shrunk, here each k has its own least
# squares.
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), width_ratios=[1, 1, 0.9])
_, _, lasso = lars_path(data.data, data.target, method="lasso")
shrinkage = np.abs(lasso).sum(0) / np.abs(lasso).sum(0)[-1]
coefs = np.stack([path.estimator(k).coef_ for k in path.ks])
for index, name in enumerate(data.feature_names):
    axes[0].plot(path.ks, coefs[:, index], ".-", label=name)
    axes[1].plot(shrinkage, lasso[index])
axes[0].set(xlabel="coefficients k", ylabel="coefficient", title="exactly k")
axes[1].set(xlabel="Σ|coefficient|, share of the end", title="lasso")
axes[0].legend(fontsize=7, ncols=2, loc="lower left")
mean, error = path.scores.mean(1), path.scores.std(1) / np.sqrt(path.scores.shape[1])
axes[2].errorbar(path.ks, mean, error, fmt="o-", markersize=3, capsize=2)
axes[2].axvline(path.one_se_k, color="gray", linewidth=0.8, linestyle="--")
axes[2].set(xlabel="coefficients k", title="R², held out")
plt.show()
