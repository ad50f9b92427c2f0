# One image for every role: `triptych run`, the web UIs, and the head and nodes of a Ray cluster. See docs/cluster.md.
# Written without a Docker daemon at hand, and never built yet.
FROM python:3.11-slim

# libgomp: scikit-learn. wget: KubeRay asks by it whether a node is alive.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 wget && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/triptych
COPY pyproject.toml constraints.txt README.md LICENSE triptych.py ./
COPY orchestration orchestration
COPY assets assets
COPY training training
# ray[default]: the agents that KubeRay asks.
RUN pip install --no-cache-dir -c constraints.txt -e '.[ray,s3,postgres]' 'ray[default]'

RUN useradd --create-home --uid 1000 triptych && install -d -o triptych /var/lib/triptych
USER triptych
ENV TRIPTYCH_HOME=/var/lib/triptych PYTHONSAFEPATH=1 RAY_USAGE_STATS_ENABLED=0
CMD ["triptych", "--help"]
