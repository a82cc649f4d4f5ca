"""A recurrent network that learns by STDP and sleeps, one step of 1 ms after the other; see `methods.sleep`.

Units are the inputs, then the neurons: first the excitatory ones, then the inhibitory ones. Only neurons have
incoming synapses. A weight is a magnitude; whether it excites depends on the unit that it comes from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ssnn_plugin.kernels.cpu.compile import exact_jit

# Time constants of currents, of potentials, and of thresholds after a spike, in steps; volts are mV.
SYNAPSE, MEMBRANE, ADAPTATION = 30.0, 30.0, 100.0
REST, RESET, LOWEST, HIGHEST = -70.0, -80.0, -100.0, 40.0
THRESHOLD, RAISED, HIGHEST_THRESHOLD = -55.0, 3.0, 0.0
SMALLEST, LARGEST = 0.01, 25.0  # weights
NEVER = -(2**40)


class Synapses(NamedTuple):
    """A sparse graph, by the unit that a synapse comes from, and by the neuron that it goes to.

    Those of unit u are `outgoing[u] ... outgoing[u + 1]`, to the neurons `post`. Those to neuron j are, in
    `pre` and `place`, `incoming[j] ... incoming[j + 1]`; `place` is where they stand among the outgoing ones.
    """

    outgoing: Any
    post: Any
    incoming: Any
    pre: Any
    place: Any
    inputs: int
    excitatory: int


class State(NamedTuple):
    """Of the neurons; `last` is when each unit fired last, `fired` who does so now, inputs first.

    `clock` has the number of steps so far, those awake since the last sleep, the spikes of inputs and those
    of neurons in `fired`; `balance` the sums of excitatory and inhibitory weights that sleep leads back to.
    """

    v: Any
    current: Any
    raised: Any
    last: Any
    fired: Any
    clock: Any
    balance: Any


class Rule(NamedTuple):
    """STDP by the age of a spike in steps: `on_pre` by that of the neuron behind, `on_post` of the unit.

    Both end with 0, what older spikes count; two spikes in one step count as `on_pre`.
    """

    on_pre: Any
    on_post: Any


class Sleep(NamedTuple):
    """After `interval` steps awake, `steps` of sleep at most; if `rescale`, weights go back to their sums.

    Asleep, V gets noise, and after `every` steps weights are pulled `towards` one value, by the power `pull`
    per step. It ends early when both sums are within `tolerance` of what they were at first.
    """

    interval: int
    steps: int
    noise: float
    pull: float
    towards: float
    tolerance: float
    every: int
    rescale: bool


TIME, AWAKE, INPUTS, NEURONS = range(4)


@exact_jit
def draw_inputs(rates, state, random):
    """Let every input fire with its probability."""
    count = 0
    for i in range(len(rates)):
        if rates[i] > 0 and random.random() < rates[i]:
            state.fired[count] = i
            count += 1
    return count


@exact_jit
def integrate(state, synapses, drive, noise, random):
    """One step of all neurons, on which `drive` comes: [neurons]; return how many fire behind the inputs."""
    count = state.clock[INPUTS]
    for j in range(len(drive)):
        state.current[j] += (drive[j] - state.current[j]) / SYNAPSE
        v = state.v[j] + (REST - state.v[j] + MEMBRANE * state.current[j]) / MEMBRANE
        if noise > 0:
            v += noise * random.standard_normal()
        v = min(max(v, LOWEST), HIGHEST)
        threshold = min(THRESHOLD + state.raised[j], HIGHEST_THRESHOLD)
        state.raised[j] -= state.raised[j] / ADAPTATION
        if v >= threshold:
            v = RESET
            state.raised[j] += RAISED
            state.fired[count] = synapses.inputs + j
            count += 1
        state.v[j] = v
    return count - state.clock[INPUTS]


@exact_jit
def add_spikes(start, stop, state, synapses, weight, drive):
    """Send on the spikes of a part of `state.fired`."""
    for k in range(start, stop):
        unit = state.fired[k]
        sign = -1.0 if unit >= synapses.inputs + synapses.excitatory else 1.0
        for s in range(synapses.outgoing[unit], synapses.outgoing[unit + 1]):
            drive[synapses.post[s]] += sign * weight[s]


@exact_jit
def change_weights(state, synapses, weight, rule):
    """STDP of every synapse with a spike on either side."""
    now, oldest = state.clock[TIME], len(rule.on_pre) - 1
    fired = state.fired[: state.clock[INPUTS] + state.clock[NEURONS]]
    for unit in fired:
        state.last[unit] = now
    of_neurons = state.last[synapses.inputs :]
    for unit in fired:
        for s in range(synapses.outgoing[unit], synapses.outgoing[unit + 1]):
            change = rule.on_pre[min(now - of_neurons[synapses.post[s]], oldest)]
            weight[s] = min(max(weight[s] + change, SMALLEST), LARGEST)
    for unit in fired[state.clock[INPUTS] :]:
        j = unit - synapses.inputs
        for s in range(synapses.incoming[j], synapses.incoming[j + 1]):
            age = now - state.last[synapses.pre[s]]
            if age > 0:
                place = synapses.place[s]
                change = rule.on_post[min(age, oldest)]
                weight[place] = min(max(weight[place] + change, SMALLEST), LARGEST)


@exact_jit
def step(rates, state, synapses, weight, drive, rule, noise, learning, random):
    """One step: inputs act at once, neurons on one another in the next step."""
    clock = state.clock
    drive[:] = 0.0
    add_spikes(clock[INPUTS], clock[INPUTS] + clock[NEURONS], state, synapses, weight, drive)
    clock[INPUTS] = draw_inputs(rates, state, random)
    add_spikes(0, clock[INPUTS], state, synapses, weight, drive)
    clock[NEURONS] = integrate(state, synapses, drive, noise, random)
    if learning:
        change_weights(state, synapses, weight, rule)
    clock[TIME] += 1


@exact_jit
def sums(synapses, weight):
    """Of the excitatory and of the inhibitory weights."""
    border = synapses.outgoing[synapses.inputs + synapses.excitatory]
    return weight[:border].sum(), weight[border:].sum()


@exact_jit
def asleep(state, synapses, weight, drive, rule, sleep, random):
    """Sleep until the sums of the weights are back, or to the end; return the number of steps."""
    dark = np.zeros(0)
    for done in range(1, sleep.steps + 1):
        step(dark, state, synapses, weight, drive, rule, sleep.noise, True, random)
        if done % sleep.every == 0:
            power = sleep.pull**sleep.every
            for s in range(len(weight)):
                weight[s] = sleep.towards * (weight[s] / sleep.towards) ** power
            excitatory, inhibitory = sums(synapses, weight)
            if (
                abs(excitatory - state.balance[0]) <= sleep.tolerance * state.balance[0]
                and abs(inhibitory - state.balance[1]) <= sleep.tolerance * state.balance[1]
            ):
                return done
    return sleep.steps


@exact_jit
def rescale(state, synapses, weight):
    """Bring the sums of the excitatory and of the inhibitory weights back by a factor each."""
    border = synapses.outgoing[synapses.inputs + synapses.excitatory]
    excitatory, inhibitory = sums(synapses, weight)
    if excitatory > 0:
        weight[:border] *= state.balance[0] / excitatory
    if inhibitory > 0:
        weight[border:] *= state.balance[1] / inhibitory


@exact_jit
def present(images, steps, state, synapses, weight, rule, sleep, learning, random, spikes, first):
    """Show images [samples, inputs] one after the other, and count.

    Args:
        images: probability per step that an input fires.
        spikes: [samples, units], filled with the number of spikes.
        first: [units], filled with the step of the first spike on the first image, `inf` without one.
    """
    drive = np.zeros(len(state.v))
    first[:] = np.inf
    for n in range(len(images)):
        spikes[n] = 0
        for t in range(steps):
            if learning and state.clock[AWAKE] == sleep.interval:
                state.clock[AWAKE] = 0
                asleep(state, synapses, weight, drive, rule, sleep, random)
                if sleep.rescale:
                    rescale(state, synapses, weight)
            step(images[n], state, synapses, weight, drive, rule, 0.0, learning, random)
            state.clock[AWAKE] += 1
            for unit in state.fired[: state.clock[INPUTS] + state.clock[NEURONS]]:
                spikes[n, unit] += 1
                if n == 0:
                    first[unit] = min(first[unit], t)
