"""One network with two inputs: an image and a row of a table."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class ImageBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(32)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(32 * 7 * 7, 64)

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.pool(F.relu(self.bn2(self.conv2(x))))
        x = x.view(-1, 32 * 7 * 7)
        return F.relu(self.fc1(x))


class ImageAndTable(nn.Module):
    def __init__(self, num_features=12, num_classes=5):
        super().__init__()
        self.image = ImageBranch()
        self.table = nn.Sequential(
            nn.Linear(num_features, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 16), nn.ReLU()
        )
        self.gate = nn.Linear(num_features, 64)
        self.fc = nn.Linear(64 + 16, 40)
        self.out = nn.Linear(40, num_classes)

    def forward(self, image, table):
        a = self.image(image)
        a = a * torch.sigmoid(self.gate(table))
        b = self.table(table)
        x = torch.cat((a, b), dim=1)
        x = F.leaky_relu(self.fc(x), 0.1)
        return self.out(x)


def small():
    return ImageAndTable()
