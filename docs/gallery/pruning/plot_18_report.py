"""
One report, every format
========================

What a call did is a ``sa.Report``: text in a terminal, a table in a notebook as below, a picture,
a page, JSON, Markdown, a data frame.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparse_accel as sa

torch.manual_seed(0)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float().view(-1, 1, 8, 8) / 16
model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
)
opt = torch.optim.Adam(model.parameters(), lr=3e-3)
for _epoch in range(5):
    for batch in torch.randperm(1347).split(64):
        opt.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        opt.step()
result = sa.prune.ISpaSP(model, images[:1], keep=0.5).run(images[:512])

# %%
# Text, for terminals and pipes.
print(result.report)

# %%
# Plain data, for whatever comes after.
plain = result.report.to_dict()
print(list(plain))
print(result.report.to_markdown()[:300])

# %%
# The picture: what is drawn depends on what the report has to say.
folder = Path(tempfile.mkdtemp())
picture = plt.imread(result.report.plot(folder / "report.png", title="Half of the channels"))
figure, axis = plt.subplots(figsize=(9, 9 * picture.shape[0] / picture.shape[1]))
axis.imshow(picture)
axis.axis("off")
plt.show()

# %%
# ``html`` writes a page that needs nothing from the network; in a notebook a report shows itself.
page = result.report.html(folder / "report.html")
print(f"{page.stat().st_size / 1024:.0f} KiB")
