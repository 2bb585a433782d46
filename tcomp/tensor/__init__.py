"""Kernels and their schedules. From the bottom up, each importing only what stands before it:

the modules of this folder (kernels, knobs, templates, loops, mathematics); `cpu` and `gpu`; `tensor_cores`;
`attention`, `strassen` and `winograd`; `schedules`, the templates; `selection`, which finds the template of a
kernel among those, and `common_packing`.
"""
