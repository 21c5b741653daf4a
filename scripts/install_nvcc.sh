#!/usr/bin/env bash
# Puts an nvcc from Python packages into a folder, where there is no CUDA toolkit:
#
#   scripts/install_nvcc.sh FOLDER [VERSION]    # such as 13.0; the newest by default
#
# CUDACXX then has to name FOLDER/nvidia/cu13/bin/nvcc, beside which cuobjdump lies.
set -euo pipefail
folder=${1:?expected a folder}
packages=(nvidia-cuda-cuobjdump)
for name in cuda-nvcc cuda-crt cuda-cccl cuda-runtime nvvm; do
  packages+=("nvidia-$name${2:+==$2.*}")
done
"${PYTHON:-python3}" -m pip install --quiet --upgrade --target "$folder" "${packages[@]}"
