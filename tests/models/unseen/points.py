"""PointNet part segmentation: learned alignments, maximum over points, the global feature repeated beside local ones, a category as second input."""

import torch
import torch.nn.functional as F
from torch import nn


class STNkd(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.conv1 = nn.Conv1d(k, 32, 1)
        self.conv2 = nn.Conv1d(32, 64, 1)
        self.conv3 = nn.Conv1d(64, 128, 1)
        self.fc1 = nn.Linear(128, 64)
        self.fc2 = nn.Linear(64, 32)
        self.fc3 = nn.Linear(32, k * k)
        self.relu = nn.ReLU()
        self.bn1 = nn.BatchNorm1d(32)
        self.bn2 = nn.BatchNorm1d(64)
        self.bn3 = nn.BatchNorm1d(128)
        self.bn4 = nn.BatchNorm1d(64)
        self.bn5 = nn.BatchNorm1d(32)
        self.k = k

    def forward(self, x):
        batchsize = x.size()[0]
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = torch.max(x, 2, keepdim=True)[0]
        x = x.view(-1, 128)
        x = F.relu(self.bn4(self.fc1(x)))
        x = F.relu(self.bn5(self.fc2(x)))
        x = self.fc3(x)
        iden = torch.eye(self.k, device=x.device, dtype=x.dtype).flatten().unsqueeze(0).repeat(batchsize, 1)
        return (x + iden).view(-1, self.k, self.k)


class PointNetSeg(nn.Module):
    def __init__(self, num_categories=4, num_parts=10):
        super().__init__()
        self.num_categories, self.num_parts = num_categories, num_parts
        self.stn = STNkd(3)
        self.conv1 = nn.Conv1d(6, 32, 1)
        self.conv2 = nn.Conv1d(32, 64, 1)
        self.conv3 = nn.Conv1d(64, 64, 1)
        self.conv4 = nn.Conv1d(64, 128, 1)
        self.conv5 = nn.Conv1d(128, 256, 1)
        self.bn1 = nn.BatchNorm1d(32)
        self.bn2 = nn.BatchNorm1d(64)
        self.bn3 = nn.BatchNorm1d(64)
        self.bn4 = nn.BatchNorm1d(128)
        self.bn5 = nn.BatchNorm1d(256)
        self.fstn = STNkd(64)
        self.convs1 = nn.Conv1d(256 + num_categories + 32 + 64 + 64 + 128, 128, 1)
        self.convs2 = nn.Conv1d(128, 64, 1)
        self.convs3 = nn.Conv1d(64, num_parts, 1)
        self.bns1 = nn.BatchNorm1d(128)
        self.bns2 = nn.BatchNorm1d(64)

    def forward(self, point_cloud, label):  # (batch, 6, points): coordinates and normals; (batch,)
        B, _, N = point_cloud.size()
        trans = self.stn(point_cloud[:, :3])
        xyz = point_cloud.transpose(2, 1)
        xyz, feature = xyz.split(3, dim=2)
        xyz = torch.bmm(xyz, trans)
        x = torch.cat([xyz, feature], dim=2).transpose(2, 1)
        out1 = F.relu(self.bn1(self.conv1(x)))
        out2 = F.relu(self.bn2(self.conv2(out1)))
        out3 = F.relu(self.bn3(self.conv3(out2)))
        trans_feat = self.fstn(out3)
        net = torch.bmm(out3.transpose(2, 1), trans_feat).transpose(2, 1)
        out4 = F.relu(self.bn4(self.conv4(net)))
        out5 = self.bn5(self.conv5(out4))
        out_max = torch.max(out5, 2)[0]
        one_hot = F.one_hot(label, self.num_categories).to(out_max.dtype)
        expand = torch.cat([out_max, one_hot], 1).unsqueeze(-1).repeat(1, 1, N)
        concat = torch.cat([expand, out1, out2, out3, out4], 1)
        net = F.relu(self.bns1(self.convs1(concat)))
        net = F.relu(self.bns2(self.convs2(net)))
        net = self.convs3(net).transpose(2, 1).contiguous()
        net = F.log_softmax(net.view(-1, self.num_parts), dim=-1)
        return net.view(B, N, self.num_parts), trans_feat


def make():
    return PointNetSeg()


def example(batch):
    return torch.randn(batch, 6, 96), torch.randint(0, 4, (batch,))
