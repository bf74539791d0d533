# usage: run1.sh core seed lr steps out
cd /tmp/train; export PYTHONPATH=$PWD JAX_PLATFORMS=cpu
exec taskset -c $1 /work/main/.venv/bin/python experiments/train.py --seed=$2 --tokens=2688 --learning_rate=$3 --steps=$4 --out=$5
