"""Settings of our own learner: every technique is a switch; `docs/experiments.md` has the verdict on each."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from brokers.configuration import Section

Width = Annotated[int, Field(ge=1, le=4_096)]


class DqnSettings(Section):
    """How the Q-network learns. Defaults are the preset `default`; values in units of the learner's reward.

    The learner's reward is log equity over the standard deviation of a long position's bar. An *episode* is
    `episode_bars` bars of experience, whether they are stepped through (`replay: transitions`) or drawn.
    """

    members: int = Field(5, ge=1, le=64)
    """Networks of different seeds, trained at once; each leaves out another fifth of the training span."""
    network: Literal["attention", "mlp"] = "mlp"
    """Layers over all features, which run as machine code; or self-attention over feature groups."""
    hidden: tuple[Width, ...] = Field((64,), min_length=1)
    """Widths of the hidden layers (ReLU); of the attention network, those behind the groups."""
    group_width: int = Field(16, ge=2, le=256)
    """Numbers that stand for one feature group (attention)."""
    heads: int = Field(2, ge=1, le=16)
    """Attention heads; they share `group_width`."""
    norm: Literal["none", "layer", "batch"] = "none"
    """Normalisation within the hidden layers."""
    value_heads: Literal["post_decision", "free"] = "post_decision"
    """One value per target, the known cost of getting there beside it; or one free value per position and target."""
    dueling: bool = False
    """Values as a common one plus advantages (Wang et al. 2016)."""
    value_loss: Literal["huber", "mse", "quantile", "categorical"] = "huber"
    """What the network predicts and how it is compared: a mean, quantiles (QR-DQN), or a histogram (HL-Gauss)."""
    huber_delta: float = Field(5.0, gt=0)
    """Where Huber's loss turns linear, in rewards' deviations: smaller ones bias skewed rewards to their median."""
    atoms: int = Field(32, ge=2, le=256)
    """Quantiles or bins of a distribution."""
    gamma: float = Field(0.99, ge=0, lt=1)
    """Discount of one bar."""
    double: bool = True
    """The online network chooses the next target, the target network values it (van Hasselt et al. 2016)."""
    n_step: int = Field(1, ge=1, le=64)
    """Bars before the target network is asked; between them the online network's own choices are followed."""
    munchausen: float = Field(0.0, ge=0, le=1)
    """Weight of the log policy in the reward (Vieillard et al. 2020); needs `value_heads: free`."""
    munchausen_temperature: float = Field(0.03, gt=0)
    """Temperature of its softmax policy."""
    tau: float = Field(0.1, gt=0, le=1)
    """How far the target network moves each time, buffers included; 1 is a copy."""
    target_update_interval: int = Field(1, ge=1)
    """Updates between its moves."""
    updates: int = Field(2_000, ge=1)
    """Gradient updates, at most."""
    batch_bars: int = Field(256, ge=1, le=65_536)
    """Bars of one update (`market`: each with all positions and targets), or transitions."""
    learning_rate: float = Field(3e-3, gt=0)
    """Adam's step after the first 50 updates, over which it rises."""
    lr_schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """To zero at the end; halved where the validation does not improve; or as it is."""
    lr_patience: int = Field(50, ge=1)
    """Evaluations without improvement after which `plateau` halves the rate."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay (AdamW)."""
    input_l1: float = Field(3e-4, ge=0)
    """Pull of the first layer's weights to zero: of many columns only those that tell something stay."""
    max_grad_norm: float = Field(10.0, gt=0)
    """Each member's gradient is clipped to this norm."""
    weight_average: float = Field(0.002, ge=0, le=1)
    """Rate of the running mean of the weights, which is what is evaluated and exported; 0: the last ones."""
    input_clip: float = Field(5.0, gt=0)
    """Features are normalised by the training bars and clipped to this many deviations."""
    relevance_floor: float = Field(0.1, gt=0, le=1)
    """Share of its size that a column keeps which, by itself, tells nothing of the next bar; 1: all are alike."""
    belief: bool = True
    """Shrink what bars outside of each member's training do not bear out, down to never trading."""

    replay: Literal["market", "transitions"] = "market"
    """Draw bars and learn every position and target of each; or store what epsilon-greedy episodes did."""
    buffer_size: int = Field(100_000, ge=1, le=50_000_000)
    """Transitions kept by each member."""
    n_envs: int = Field(16, ge=1, le=4_096)
    """Episodes stepped side by side by each member (`transitions`)."""
    steps_per_update: float = Field(16.0, gt=0)
    """Steps of all of a member's episodes for each update (`transitions`)."""
    episode_bars: int = Field(1_000, ge=1)
    """Bars of one episode."""
    start_position: Literal["flat", "random"] = "random"
    """Position at the start of an episode (`transitions`)."""
    exploration: Literal["per_episode", "linear"] = "linear"
    """How the share of random actions falls (`transitions`)."""
    exploration_initial: float = Field(1.0, ge=0, le=1)
    """At the start."""
    exploration_final: float = Field(0.05, ge=0, le=1)
    """At the end."""
    exploration_decay: float = Field(0.998, gt=0, lt=1)
    """Factor of each episode (`per_episode`)."""
    exploration_fraction: float = Field(0.5, gt=0, le=1)
    """Share of the updates over which it falls (`linear`)."""
    prioritised: bool = False
    """Draw in proportion to the TD error (Schaul et al. 2016), weighted back."""
    priority_alpha: float = Field(0.6, ge=0, le=1)
    """Power of the TD error."""
    priority_beta: float = Field(0.4, ge=0, le=1)
    """Power of the importance weights at the start; it rises to one."""
    priority_clip: float = Field(5.0, gt=0)
    """Largest TD error that counts."""

    reward: Literal["log_equity", "shaped"] = "log_equity"
    """After-cost log equity; or with the potential of a held position's recent gain on top (`value_heads: free`)."""
    shaping_weight: float = Field(0.1, ge=0)
    """Weight of that potential."""
    shaping_bars: int = Field(8, ge=1)
    """Bars of the recent gain."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks are trained."""
    threads: int = Field(2, ge=1, le=64)
    """Groups of members that are trained side by side on the CPU; the weights do not depend on it."""
    evaluations: int = Field(10, ge=1)
    """Evaluations on the bars that each member leaves out."""
    checkpoint_episodes: int = Field(25, ge=1)
    """Episodes between checkpoints, where a run directory is given."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        free = {"munchausen": self.munchausen > 0, "reward: shaped": self.reward == "shaped"}
        for name, used in free.items():
            if used and self.value_heads != "free":
                raise ValueError(f"{name} makes values depend on the position: it needs value_heads: free")
        if self.network == "attention" and self.group_width % self.heads:
            raise ValueError(f"group_width {self.group_width} cannot be shared by {self.heads} heads: give a multiple")
        if self.n_step > 1 and (self.munchausen > 0 or self.value_loss == "quantile" or self.replay == "transitions"):
            raise ValueError("n_step beyond 1 needs replay: market, a mean or categorical loss, and no munchausen")
        if self.munchausen > 0 and self.value_loss == "quantile":
            raise ValueError("munchausen needs value_loss huber, mse or categorical")
        if self.lr_schedule == "plateau" and self.evaluations <= self.lr_patience:
            raise ValueError(
                f"{self.evaluations} evaluations never outlast lr_patience {self.lr_patience}: raise evaluations"
            )
        if self.replay == "transitions" and self.buffer_size < self.n_envs:
            raise ValueError(
                f"a buffer_size of {self.buffer_size} does not hold one step of {self.n_envs} n_envs: raise it"
            )
        if self.exploration_final > self.exploration_initial:
            raise ValueError(
                f"exploration_final {self.exploration_final} is above exploration_initial {self.exploration_initial}: "
                "exploration falls"
            )
        return self
