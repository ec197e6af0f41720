"""The ServerApp: Flower's FedAvg, which also tells the time after each round."""

import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from .task import build, get_arrays

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg."""
    config = context.run_config
    clock = Path(str(config["clock"]))

    def tick(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Called by the strategy before the first round and after each."""
        del arrays
        with clock.open("a", encoding="utf-8") as file:
            file.write(f"{server_round} {time.time()}\n")
        return None

    FedAvg().start(
        grid=grid,
        initial_arrays=get_arrays(build(str(config["base"]))),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=tick,
    )
