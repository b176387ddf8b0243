"""The runtime: messages, bus, contract net, supervision, journal, launchers. No torch, no mujoco, no RL."""
