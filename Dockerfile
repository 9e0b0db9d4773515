# The command `dynrefer` in a container: the server, or the page.
#   docker build -t dynrefer .                                    for CPU
#   docker build -t dynrefer:cuda --build-arg TORCH=cuda .        for NVIDIA's GPUs
#   docker run -p 8000:8000 -v ./runs/quickstart:/model:ro dynrefer
#   docker run --no-healthcheck -p 7860:7860 -v ./runs/quickstart:/model:ro dynrefer demo --model /model --host 0.0.0.0
# docs/serving.md says more.
FROM python:3.12-slim-bookworm AS build

# "cpu": wheels without CUDA; "cuda": those of PyPI, which bring CUDA along, so that the host needs its driver only
ARG TORCH=cpu
ARG CPU_WHEELS=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/dynrefer
ENV PATH=/opt/dynrefer/bin:$PATH

WORKDIR /source
# what changes seldom comes first: with another line of code nothing is downloaded again
COPY setup.py ./
COPY dynrefer/__init__.py dynrefer/
RUN python -c "import runpy, sys, types; given = {}; \
    sys.modules['setuptools'] = types.SimpleNamespace(setup=lambda **all: given.update(all), find_packages=lambda **_: []); \
    runpy.run_path('setup.py'); extras = given['extras_require']; \
    print(*given['install_requires'], *extras['serve'], *extras['demo'], sep='\n')" \
    > requirements.txt \
    && if [ "$TORCH" = cpu ]; then \
        grep -E '^torch(vision)?>' requirements.txt > torch.txt \
        && pip install --index-url "$CPU_WHEELS" -r torch.txt; \
    fi \
    && pip install -r requirements.txt

COPY README.md LICENSE ./
COPY dynrefer dynrefer
RUN pip install --no-deps . && dynrefer --version


FROM python:3.12-slim-bookworm

COPY --from=build /opt/dynrefer /opt/dynrefer
RUN useradd --system --uid 10001 --create-home dynrefer
USER 10001
WORKDIR /home/dynrefer
ENV PATH=/opt/dynrefer/bin:$PATH PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8000 7860
# of the server; for the page: docker run --no-healthcheck
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["dynrefer"]
CMD ["serve", "--model", "/model", "--host", "0.0.0.0"]
