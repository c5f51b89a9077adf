# The web page. It talks to Triton over gRPC and computes nothing itself.
FROM python:3.11-slim-bookworm

WORKDIR /opt/lungstreams
COPY pyproject.toml README.md ./
COPY serving serving
COPY demo demo
COPY train train
COPY loadtest loadtest
COPY lungstreams lungstreams
RUN python -m pip install --no-cache-dir . \
 && useradd --create-home lungstreams

USER lungstreams
WORKDIR /home/lungstreams
ENV TRITON_URL=triton:8001
EXPOSE 7860
CMD ["python", "-c", "import os; from demo.app import launch; from demo.guard import PageAccess; launch(os.environ['TRITON_URL'], '0.0.0.0', 7860, access=PageAccess(insecure=True))"]
