"""Training of reference models: what every family shares, from backbones to a finished checkpoint.

A family brings its module (:class:`~protomask.training.model.ReferenceModel`), its settings
(:class:`~protomask.training.settings.BaseSettings`) and its steps (:class:`~protomask.training.run.TrainingRun`);
:func:`~protomask.training.train.fit` carries out the rest.
"""
