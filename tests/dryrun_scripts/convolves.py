import torch

layer = torch.nn.Conv2d(3, 64, kernel_size=14, stride=14).cuda()
optimizer = torch.optim.AdamW(layer.parameters())
pixels = torch.rand(8, 3, 448, 448).cuda()
for _ in range(3):
    layer(pixels).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
