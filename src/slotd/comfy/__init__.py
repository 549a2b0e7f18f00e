"""ComfyUI behind OpenAI's image endpoints: workflow templates, its protocol, and the adapters.

:mod:`~slotd.comfy.workflow`, :mod:`~slotd.comfy.asked`, :mod:`~slotd.comfy.form`,
:mod:`~slotd.comfy.progress` and :mod:`~slotd.comfy.words` are pure. :mod:`~slotd.comfy.api`
makes single calls, :mod:`~slotd.comfy.events` listens, :mod:`~slotd.comfy.job` sees one prompt
to its end, :mod:`~slotd.comfy.answers` has the client's two shapes, and
:mod:`~slotd.comfy.adapter` puts it all behind the seam of :mod:`slotd.adapt`.
"""
