cd /tmp/train; export PYTHONPATH=$PWD JAX_PLATFORMS=cpu
(timeout 240 /work/main/.venv/bin/python experiments/train.py --seed=1 --tokens=2688 --learning_rate=2e-3 --out=/tmp/tm1 > /tmp/tm1.log 2>&1 )
