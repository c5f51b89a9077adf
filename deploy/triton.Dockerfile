# NVIDIA's Triton with what the `preprocess` model imports. The networks need nothing more than what is in it.
ARG TRITON_IMAGE
FROM ${TRITON_IMAGE}

# The image is this server and nothing else: its Python is ours to install into.
ENV PIP_BREAK_SYSTEM_PACKAGES=1
COPY deploy/requirements-triton.txt /opt/lungstreams/requirements.txt
RUN python3 -m pip install --no-cache-dir --requirement /opt/lungstreams/requirements.txt

COPY serving /opt/lungstreams/serving
# By a .pth file: Triton's Python stub ignores PYTHONPATH. The import is the proof that nothing is missing.
RUN python3 -c "import pathlib, site; pathlib.Path(site.getsitepackages()[0], 'lungstreams.pth').write_text('/opt/lungstreams\n')" \
 && python3 -c "import serving.preprocessing"
