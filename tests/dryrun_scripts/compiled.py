import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

how, config = sys.argv[1], AutoConfig.from_pretrained(sys.argv[2])
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda()
if how == "compile":
    model.compile()
if how == "liger":
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(model=model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
ids = torch.randint(3, config.vocab_size, (2, 64)).cuda()


def forward_and_backward():
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


graph = torch.cuda.CUDAGraph()
if how == "graph":
    with torch.cuda.stream(torch.cuda.Stream()):
        forward_and_backward()
    with torch.cuda.graph(graph):
        forward_and_backward()
for _ in range(3):
    graph.replay() if how == "graph" else forward_and_backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=how != "graph")
