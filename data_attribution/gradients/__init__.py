"""Evidence from gradients: compare the loss gradients of documents with the gradient of a query."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.gradients.features import document_features, query_features
    from data_attribution.gradients.kinds import refuse_unknown_kind
    from data_attribution.gradients.preconditioner import missing_moments
    from data_attribution.gradients.similarity import (
        DEFAULT,
        Collected,
        GradientOptions,
        collect,
        products,
        rank_by_gradients,
        ranking_cost,
    )
    from data_attribution.gradients.store import (
        GRADIENT_FOLDER,
        GradientStore,
        build_gradient_store,
        open_gradient_store,
        trained_documents,
        verify_gradient_store,
    )
    from data_attribution.gradients.store_size import StoreSize, plan_gradient_store
    from data_attribution.gradients.weight_selection import TOP_WEIGHTS, select_weights

__all__ = [
    "DEFAULT",
    "GRADIENT_FOLDER",
    "TOP_WEIGHTS",
    "Collected",
    "GradientOptions",
    "GradientStore",
    "StoreSize",
    "build_gradient_store",
    "collect",
    "document_features",
    "missing_moments",
    "open_gradient_store",
    "plan_gradient_store",
    "products",
    "query_features",
    "rank_by_gradients",
    "ranking_cost",
    "refuse_unknown_kind",
    "select_weights",
    "trained_documents",
    "verify_gradient_store",
]

__getattr__ = names_on_first_use(__name__, __file__)
