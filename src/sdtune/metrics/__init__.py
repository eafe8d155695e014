"""Published metrics: encoders that look at pictures, and formulas on what they see. Importing this package loads no torch.

Two layers, which meet in numpy arrays.

What looks (registry.py says what there is; only these hold networks):

    encoders.load(name, at=None, device="cpu") -> Encoder        .texts(prompts) where there is a text side, .logit_scale of CLIPs
    encoders.load_pairs("lpips-alex" | "lpips-vgg", ...)         distances of pairs
    encoders.load_head("aesthetic")                              (weight, bias, sha256) for aesthetic.aesthetic
    image_reward.load("imagereward")                             scores of pictures with their prompts
    cache.features(encoder, images, total=, folder=, progress=)  (N, D) float64, each picture looked at once
    cache.distances(perceptual, pairs, ...)                      (N,) float64, the same for pairs
    cache.scores(rewarding, (picture, prompt) pairs, ...)        (N,) float64, the same for ImageReward
    features.Scorer                                              the scorer that comes along, with its own texts

`load` raises places.NotHere, whose `missing` says what to leave out, why, and how to get it; places.missing_for(metric) asks without
loading. `record()` of an encoder is what a result must say of it. Nothing is downloaded but by places.get.

What computes, one file each, pure functions over (N, D) arrays; `prompt_N` numbers each picture's prompt:

    kid.kid, kid.ClusteredKid(..., kernel=cmmd.gaussian_kernel), kid.published    frechet.frechet, frechet_few, published (refuses)
    cmmd.cmmd (as published), cmmd.unbiased                                       prdc.prdc
    clip_score.clip_score, content.*                                              dino.likeness, dino.among (the ceiling)
    preference.pick_score, hps_score, chosen, win_rate                            aesthetic.head, aesthetic.aesthetic
    diversity.seed_diversity, cosine_diversity, seed_pairs + by_prompt, vendi     copying.copies, nearest.nearest
    drift.drift, drift.between_seeds (its yardstick)                              lpips.distance (on tensors)

registry.METRICS holds what each answers, and how many pictures, prompts or pairs make it evidence.
"""
